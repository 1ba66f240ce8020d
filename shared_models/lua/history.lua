-- `steps` puts this before the scripts that claim something.
--
-- Redis' own name for its history: random, and another one after each start and each promotion of this server. So if it is the
-- same as when a pass began, on the same connection, this server has lost nothing that the pass has read or written. False if
-- Redis does not say it: then nothing can be claimed.
local function history()
  return string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)') or false
end
