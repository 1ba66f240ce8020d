-- The storage of a counter by group: a SET for each group, and a directory (ZSET group -> how many members it has).
-- An element is a group, a zero byte, and a member. What the functions do: see storage_set.lua.
--
-- `size` counts the groups of the directory. Each group has a size of its own: its score. If its set has another number of
-- members, something else has changed that set, and only this group is not live. A set that the directory does not name belongs
-- to no group; `put` removes it before it begins this group. If the directory was lost, a new one and new sets begin: the next
-- generation.
local WIDTH, KEEPS_GAP = 1, false

local function split(element)
  local at = string.find(element, '\0', 1, true)
  return string.sub(element, 1, at - 1), string.sub(element, at + 1)
end
local function generation_of(intake) return redis.call('HMGET', intake, 'generation')[1] or '' end
local function names_of(members) return string.sub(members, 1, -8) .. 'names' end
local function set_of(members, generation, group) return members .. ':' .. generation .. ':' .. group end
local function count_of(members) return redis.call('ZCARD', members) end

-- The elements of ARGV[first…] come group by group: the group, the number of its members that follow, and these members.
-- Returns the groups, and where the members of each begin and end.
local function runs(first)
  local groups, from, to = {}, {}, {}
  while first <= #ARGV do
    local last = first + 1 + tonumber(ARGV[first + 1])
    groups[#groups + 1], from[#from + 1], to[#to + 1] = ARGV[first], first + 2, last
    first = last + 1
  end
  return groups, from, to
end

local function holds(members, intake, first)
  local generation, groups, from, to = generation_of(intake), runs(first)
  for i, group in ipairs(groups) do
    for _, present in ipairs(redis.call('SMISMEMBER', set_of(members, generation, group), unpack(ARGV, from[i], to[i]))) do
      if present == 0 then return false end
    end
  end
  return true
end

local function mark_of(element) return element end

local function unmark(members, marks, first)
  if redis.call('EXISTS', marks) == 0 then return end
  local groups, from, to = runs(first)
  for i, group in ipairs(groups) do
    local elements = {}
    for at = from[i], to[i] do
      elements[#elements + 1] = group .. '\0' .. ARGV[at]
    end
    redis.call('HDEL', marks, unpack(elements))
  end
end

-- Change the number of members that all groups have together: the sum of their sizes. A size that somebody has lowered may fall
-- below 0, and counts as 0 then; or it may be infinite. The number is only reported; no step relies on it.
local function move_elements(intake, by)
  local elements = redis.call('HMGET', intake, 'elements')[1]
  if by ~= 0 and by % 1 == 0 and math.abs(by) < 1e15 and (not elements or is_size(elements)) then
    redis.call('HINCRBY', intake, 'elements', by)
  end
end

local function put(members, intake, first)
  local generation, names = generation_of(intake), names_of(members)
  local groups, from, to = runs(first)
  -- First everything that can fail because a key is of another type, then the first write.
  redis.call('ZCARD', names)
  local sizes, new = redis.call('ZMSCORE', members, unpack(groups)), 0
  for i, group in ipairs(groups) do
    if sizes[i] then
      redis.call('SCARD', set_of(members, generation, group))
    else
      new = new + 1
    end
  end
  if new > 0 and redis.call('ZCARD', members) + new > MAX_GROUPS then return nil end
  local added, counted = 0, 0
  for i, group in ipairs(groups) do
    local set = set_of(members, generation, group)
    if not sizes[i] then redis.call('UNLINK', set) end
    local more = redis.call('SADD', set, unpack(ARGV, from[i], to[i]))
    if more > 0 then
      local size = tonumber(redis.call('ZINCRBY', members, more, group))
      added, counted = added + more, counted + math.max(size, 0) - math.max(size - more, 0)
    end
    if not sizes[i] then redis.call('ZADD', names, 0, group) end
  end
  move_elements(intake, counted)
  return new, added
end

local function take(members, intake, element)
  local group, member = split(element)
  local set = set_of(members, generation_of(intake), group)
  if not redis.call('ZSCORE', members, group) or redis.call('SREM', set, member) == 0 then return 0, element end
  local size = tonumber(redis.call('ZINCRBY', members, -1, group))
  if size >= 0 then move_elements(intake, -1) end
  -- If somebody has lowered its size, members are left. They stay, and the group is not live.
  if size > 0 or redis.call('SCARD', set) > 0 then return 0, element end
  redis.call('ZREM', members, group)
  redis.call('ZREM', names_of(members), group)
  redis.call('UNLINK', set)
  return 1, element
end

-- Whether the directory and the names have the same number of groups.
local function is_whole(members) return redis.call('ZCARD', names_of(members)) == redis.call('ZCARD', members) end

-- Start empty. The keeper removes the sets of an earlier generation, which no directory names.
local function clear(members, intake, token)
  redis.call('UNLINK', members, names_of(members), string.sub(members, 1, -8) .. 'broken')
  redis.call('HSET', intake, 'generation', token, 'elements', '0')
end
