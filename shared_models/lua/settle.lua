-- Settle whether a counter's set has been lost: make the counter cold, or take the doubt off it.
--
-- KEYS[1] members   KEYS[2] state
-- ARGV[1] cursor, and ARGV[2] doubt ("" for none), as the keeper has seen them   ARGV[3] 1: the table has rows that they claim
-- Returns 1 where the counter is cold now, else 0. Nothing is changed where it is not as it was seen.
--
-- Atomic because the set may have come back, or the counter may have been built anew, since the keeper looked.
local have = redis.call('HMGET', KEYS[2], 'cursor', 'doubt')
if have[1] ~= ARGV[1] or (have[2] or '') ~= ARGV[2] then return 0 end
if ARGV[2] == '' and redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HDEL', KEYS[2], 'doubt')
if ARGV[3] ~= '1' then return 0 end
return redis.call('HDEL', KEYS[2], 'cursor')
