-- `steps` puts this before the scripts that claim something.
--
-- Redis' own name for its history: random, and another one after each start and each promotion of this server. So if it is the
-- same as when a pass began, on the same connection, this server has lost nothing that the pass has read or written. Not text if
-- Redis does not say it: then nothing can be claimed.
--
-- In a cluster slots may go to another server and come back, and that server may have lost something in between. Each time slots
-- come, this server has another epoch. So the name has that, too. The same as `states.history_in`.
local function history()
  local name = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
  if not name then return false end
  if not string.find(redis.call('INFO', 'cluster'), 'cluster_enabled:1', 1, true) then return name end
  local epoch = string.match(redis.call('CLUSTER', 'INFO'), 'cluster_my_epoch:(%d+)')
  return epoch and name .. '/' .. epoch
end
