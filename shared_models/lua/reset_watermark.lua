-- Set the watermark again, if it is missing or impossible.
--
-- KEYS[1] intake   KEYS[2] state
-- ARGV[1] watermark as the keeper has seen it; "" if it is missing, or is not a number, or belongs to no source
-- ARGV[2] highest xact that the replica knows of   ARGV[3] source of that xact   ARGV[4] now in microseconds
-- Returns 1, or 0 if somebody has set it since (nothing is changed then).
--
-- Atomic because a record may raise it at any moment. The new watermark does not cover earlier acknowledgements. So the
-- script notes the time, and sweeps wait until the replica shows later commits.
local have, source = unpack(redis.call('HMGET', KEYS[1], 'watermark', 'watermark_source'))
local is_mark = have and source and #have <= 19 and string.match(have, '^[1-9]%d*$') and string.match(source, '^%d+/%d+/%d+$')
if is_mark and have ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'watermark', ARGV[2], 'watermark_source', ARGV[3])
redis.call('HSET', KEYS[2], 'watermark_reset_at', ARGV[4])
return 1
