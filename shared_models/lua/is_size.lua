-- For the scripts that move a size: put in front of them.
--
-- Whether this is a size, as HINCRBY takes it, and short enough for Lua to count exactly; a missing one (false) is none.
local function is_size(size)
  return size and #size <= 15 and string.match(size, '^%-?%d+$')
end
