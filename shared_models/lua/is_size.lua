-- `steps` puts this before the scripts that change a size.
--
-- Whether this is a size that HINCRBY takes (which no zero begins), and short enough for Lua to count exactly; a missing one
-- (false) is not.
local function is_size(size)
  return size and #size <= 15 and (size == '0' or string.match(size, '^%-?[1-9]%d*$'))
end
