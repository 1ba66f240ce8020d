-- Note what a reconcile found, on the counter that it looked at; and make its size that of the set.
--
-- KEYS[1] members   KEYS[2] intake   KEYS[3] state
-- ARGV[1] build of the counter when the run began   ARGV[2] gap between set and size when it began
-- ARGV[3] now in microseconds   ARGV[4] missing   ARGV[5] extra   ARGV[6] 1: it has repaired what it found, 0: it has only looked
-- ARGV[7] token: the counter's new build, if the run has settled a gap
-- ARGV[8] cursor when the run began: departures below it are resolved; "" if the run could not remove all these members
-- ARGV[9] changed_at when the run began: if the table has not changed since, the change is settled
-- ARGV[10] history of Redis when the run began
-- Returns 1; 0 if the counter has been lost or built again since; -1 if something else has changed the set since; -2 if Redis
-- has begun another history (nothing is changed in these cases).
--
-- Atomic because a counter that becomes cold in between must not get the verification of its earlier build, and a change
-- by hand in between must not be hidden. After a failover the set may lack what the run has seen in it. A settled gap gives the counter another build. So a second run that began with
-- the same gap cannot settle an equal gap of a later change by hand, which it has not looked at.
local build, cursor = unpack(redis.call('HMGET', KEYS[3], 'build', 'cursor'))
local left = redis.call('HMGET', KEYS[3], 'left_through')[1]
local size, intake_build = unpack(redis.call('HMGET', KEYS[2], 'size', 'build'))
if build ~= ARGV[1] or intake_build ~= ARGV[1] or not cursor or not is_size(size) then return 0 end
-- Only a set is settled: what a run adds to a directory that was deleted removes the set of a group that nobody counts any more,
-- with members that the run has found there. The keeper builds the counter.
if not KEEPS_GAP and tonumber(ARGV[2]) ~= 0 then return 0 end
if history() ~= ARGV[10] then return -2 end
local count = count_of(KEYS[1])
if count - tonumber(size) ~= tonumber(ARGV[2]) then return -1 end
redis.call('HSET', KEYS[3], 'verified_at', ARGV[3], 'missing', ARGV[4], 'extra', ARGV[5], 'repaired', ARGV[6])
if ARGV[6] == '1' then
  if ARGV[9] ~= '' and redis.call('HMGET', KEYS[3], 'changed_at')[1] == ARGV[9] then
    redis.call('HSET', KEYS[3], 'settled', ARGV[9])
  end
  -- An impossible value, as in `states.parse_state`, is replaced.
  local stands = left and string.match(left, '^[1-9]%d*$') and not below(cursor, left) and not below(left, ARGV[8])
  if ARGV[8] ~= '' and not stands then
    redis.call('HSET', KEYS[3], 'left_through', ARGV[8])
  end
  redis.call('HSET', KEYS[2], 'size', string.format('%d', count))
  if tonumber(ARGV[2]) ~= 0 then
    redis.call('HSET', KEYS[2], 'build', ARGV[7])
    redis.call('HSET', KEYS[3], 'build', ARGV[7])
  end
end
return 1
