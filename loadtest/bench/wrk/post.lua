-- POSTs one message at a time to the path of the URL: users drawn from 100,000, 50 cities; each thread its own sequence.
-- Headers that wrk is given with -H are sent, too.
local threads = 0

function setup(thread)
  threads = threads + 1
  thread:set("seed", threads)
end

function init(args)
  math.randomseed(seed)
  wrk.headers["Content-Type"] = "application/json"
end

function request()
  local body = string.format(
    '{"state":"NY","city":"city%02d","username":"user%06d","message":"Good morning from here!"}',
    math.random(0, 49), math.random(1, 100000))
  return wrk.format("POST", nil, nil, body)
end
