-- Take out those suspects that are still suspected by this sweep.
--
-- KEYS[1] members   KEYS[2] suspects   KEYS[3] intake
-- ARGV[1] token of the sweep   ARGV[2…] suspects without a row, a chunk at most
-- Returns those that were taken out.
--
-- Atomic because a member that is recorded after the look at its mark must stay, and the size goes with the members.
-- Redis does not roll a script back: the intake is read first, so that nothing that can fail comes after the first SREM.
local size = redis.call('HMGET', KEYS[3], 'size')[1]
local gone, removed = {}, 0
for i = 2, #ARGV do
  if redis.call('HGET', KEYS[2], ARGV[i]) == ARGV[1] then
    redis.call('HDEL', KEYS[2], ARGV[i])
    removed = removed + redis.call('SREM', KEYS[1], ARGV[i])
    gone[#gone + 1] = ARGV[i]
  end
end
if removed > 0 and is_size(size) then
  redis.call('HINCRBY', KEYS[3], 'size', -removed)
end
return gone
