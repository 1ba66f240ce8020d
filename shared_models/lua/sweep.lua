-- Take out those suspects that are still suspected by this sweep.
--
-- KEYS[1] members   KEYS[2] suspects
-- ARGV[1] token of the sweep   ARGV[2…] suspects without a row, a chunk at most
-- Returns those that were taken out.
--
-- Atomic because a member that is recorded after the look at its mark must stay.
local gone = {}
for i = 2, #ARGV do
  if redis.call('HGET', KEYS[2], ARGV[i]) == ARGV[1] then
    redis.call('HDEL', KEYS[2], ARGV[i])
    redis.call('SREM', KEYS[1], ARGV[i])
    gone[#gone + 1] = ARGV[i]
  end
end
return gone
