-- The storage of a counter that knows when each member was last seen: a HASH member -> day, and a HASH day -> how many members
-- were last seen on it. An element is a day (ten characters, in the order of time), a zero byte, and a member: it says that the
-- member's last row is of that day. What the functions do: see storage_set.lua.
--
-- Adding an element keeps the later day. Removing one lowers the member's day to that of its last row, or removes the member.
local WIDTH, KEEPS_GAP = 2, false

local function split(element)
  local at = string.find(element, '\0', 1, true)
  return string.sub(element, 1, at - 1), string.sub(element, at + 1)
end
local function days_of(members) return string.sub(members, 1, -8) .. 'days' end
local function count_of(members) return redis.call('HLEN', members) end

-- The elements of ARGV[first…] come day by day: the day, the number of members that follow, and these members. Calls `look` with
-- each day, the index before its first member, and the values that `hash` has for its members, in their order.
local function each_day(hash, first, look)
  while first <= #ARGV do
    local last = first + 1 + tonumber(ARGV[first + 1])
    look(ARGV[first], first + 1, redis.call('HMGET', hash, unpack(ARGV, first + 2, last)))
    first = last + 1
  end
end

local function holds(members, intake, first)
  local all = true
  each_day(members, first, function(day, before, have)
    for i = 1, #have do
      all = all and have[i] and have[i] >= day
    end
  end)
  return all
end

local function mark_of(element)
  local _, member = split(element)
  return member
end

-- A record of an earlier day does not prove that the marked day still has a row. And the question for the last day may not
-- have seen the row that is recorded here. So the mark changes to "again": the keeper has to ask again.
local function unmark(members, marks, first)
  if redis.call('EXISTS', marks) == 0 then return end
  each_day(marks, first, function(day, before, holders)
    for i = 1, #holders do
      if holders[i] then
        local member = ARGV[before + i]
        local have = redis.call('HMGET', members, member)[1]
        if have and day < have then
          redis.call('HSET', marks, member, 'again')
        else
          redis.call('HDEL', marks, member)
        end
      end
    end
  end)
end

local function move_days(members, moves)
  local days = days_of(members)
  for day, by in pairs(moves) do
    if by ~= 0 then
      -- Somebody has written something else there. Without it the numbers do not add up, and the keeper builds the counter.
      local have = redis.call('HMGET', days, day)[1]
      if have and not is_size(have) then redis.call('HDEL', days, day) end
      if redis.call('HINCRBY', days, day, by) == 0 then redis.call('HDEL', days, day) end
    end
  end
end

local function put(members, intake, first)
  local later, moves, new = {}, {}, 0
  each_day(members, first, function(day, before, have)
    local more = 0
    for i = 1, #have do
      local member = ARGV[before + i]
      local was = later[member] or have[i]
      if not was or was < day then
        if was then
          moves[was] = (moves[was] or 0) - 1
        else
          new = new + 1
        end
        more = more + 1
        later[member] = day
      end
    end
    moves[day] = (moves[day] or 0) + more
  end)
  local written = {}
  for member, day in pairs(later) do
    written[#written + 1] = member
    written[#written + 1] = day
  end
  -- The days first: if this fails, because somebody has written into them, no member was added.
  move_days(members, moves)
  if #written > 0 then redis.call('HSET', members, unpack(written)) end
  return new, new
end

-- `instead`: the day of the member's last row; "" if it has none. The mark proves that nothing was recorded since the question.
-- So no later day has a row, whichever day was marked.
local function take(members, intake, element, instead)
  local _, member = split(element)
  local day = redis.call('HGET', members, member)
  if not day or (instead ~= '' and day <= instead) then return 0 end
  if instead == '' then
    redis.call('HDEL', members, member)
    move_days(members, { [day] = -1 })
    return 1, day .. '\0' .. member
  end
  redis.call('HSET', members, member, instead)
  move_days(members, { [day] = -1, [instead] = 1 })
  return 0, day .. '\0' .. member
end

local function is_whole(members)
  local sum = 0
  for _, number in ipairs(redis.call('HVALS', days_of(members))) do
    if not string.match(number, '^%d+$') then return false end
    sum = sum + tonumber(number)
  end
  return sum == redis.call('HLEN', members)
end

local function clear(members, intake, token) redis.call('UNLINK', members, days_of(members)) end
