-- `steps` puts this before the scripts that change a size.
--
-- Whether this is a size that HINCRBY takes, and short enough for Lua to count exactly; a missing one (false) is not.
local function is_size(size)
  return size and #size <= 15 and string.match(size, '^%-?%d+$')
end
