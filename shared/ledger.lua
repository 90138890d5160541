-- Every change of the ledger, one operation a call, atomic. Keys and meanings: shared/jobs.py. ARGV[1] names the operation.
-- Each operation is safe to repeat: redis-py sends a command again when its answer was lost.
-- `P` (key prefix) and `MOVES` (legal moves, from shared/jobs.py) are defined by the lines put before this file.

local MINUTES = 600  -- how long a finished unit answers a late message with 'done'; after that with 'gone', which changes nothing either
local WAITING = 1  -- units of a job in the queue at once: each claim sends the next, and jobs take turns, however large one is

local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function job_key(id) return P .. 'job:' .. id end
local function unit_key(id, unit) return P .. 'unit:' .. id .. ':' .. unit end
local function member(id, unit) return id .. ' ' .. unit end
local function int(key, field) return tonumber(redis.call('HGET', key, field) or '0') or 0 end
local function terminal(state) return not next(MOVES[state]) end

-- Moves a job to another state if that is legal; answers whether it is in that state afterwards.
local function move(id, to)
  local job = job_key(id)
  local from = redis.call('HGET', job, 'state')
  if from == to then return true end
  if not from or not MOVES[from][to] then return false end
  redis.call('HSET', job, 'state', to)
  redis.call('SREM', P .. 'state:' .. from, id)
  redis.call('SADD', P .. 'state:' .. to, id)
  if to == 'running' and not redis.call('HGET', job, 'started') then redis.call('HSET', job, 'started', now()) end
  if terminal(to) then
    redis.call('HSET', job, 'ended', now())
    redis.call('DEL', job .. ':unsent')
    redis.call('HDEL', job, 'pause')
  end
  return true
end

local function mark_sent(id, unit, at)
  redis.call('ZADD', P .. 'sent', at, member(id, unit))
end

local function drop_lease(id, unit)
  if redis.call('ZREM', P .. 'leases', member(id, unit)) == 1 then
    redis.call('HINCRBY', job_key(id), 'leased', -1)
  end
end

-- A cancelled job ends, and a paused one rests, when nobody works on it any more. Answers whether it ended.
local function rest(id)
  local job = job_key(id)
  if int(job, 'leased') > 0 then return false end
  if redis.call('HGET', job, 'cancel') == '1' then return move(id, 'cancelled') end
  if redis.call('HGET', job, 'pause') == '1' then move(id, 'paused') end
  return false
end

local function stopping(id)
  local job = job_key(id)
  return redis.call('HGET', job, 'cancel') == '1' or redis.call('HGET', job, 'pause') == '1'
end

-- Puts a unit back to the front of what is not yet sent.
local function put_back(id, unit)
  redis.call('HSET', unit_key(id, unit), 'state', 'unsent')
  redis.call('LPUSH', job_key(id) .. ':unsent', unit)
end

-- A job of one unit waits for another worker; how far the last one came says nothing any more.
local function wait_again(id)
  move(id, 'queued')
  redis.call('HDEL', job_key(id), 'progress')
end

local function holds(id, unit, token)
  local u = unit_key(id, unit)
  return redis.call('HGET', u, 'state') == 'leased' and redis.call('HGET', u, 'token') == token
end

-- The next unit that is not yet sent, or nil. A stretch of shards is one entry, `<first>-<last>/<size>`, cut one by one:
-- so a batch of a million items takes a few bytes here, whatever the size of its shards.
local function next_unsent(id)
  local unsent = job_key(id) .. ':unsent'
  local entry = redis.call('LPOP', unsent)
  if not entry then return nil end
  local first, last, size = string.match(entry, '^(%d+)-(%d+)/(%d+)$')
  if not first then return entry end
  first, last, size = tonumber(first), tonumber(last), tonumber(size)
  local stop = math.min(first + size, last)
  if stop < last then redis.call('LPUSH', unsent, string.format('%d-%d/%d', stop, last, size)) end
  return string.format('%08d-%08d', first, stop)
end

-- Keeps a few units of a job in the queue, so that a giant batch never fills it.
-- Answers the units that the caller should send now; if it dies first, the sweeper sends them.
local function next_units(id)
  local job = job_key(id)
  local out = {}
  if terminal(redis.call('HGET', job, 'state')) or stopping(id) then return out end
  while int(job, 'waiting') < WAITING do
    local unit = next_unsent(id)
    if not unit then break end
    redis.call('HSET', unit_key(id, unit), 'state', 'waiting')
    redis.call('HINCRBY', job, 'waiting', 1)
    mark_sent(id, unit, now())
    out[#out + 1] = unit
  end
  return out
end

-- Back among those that wait for a worker; the sweeper sends it at once.
local function wait_for_another(id, unit)
  local job = job_key(id)
  if redis.call('HGET', job, 'pause') == '1' then
    put_back(id, unit)
  else
    redis.call('HSET', unit_key(id, unit), 'state', 'waiting')
    redis.call('HINCRBY', job, 'waiting', 1)
    mark_sent(id, unit, 0)
  end
end

local function lease_to(id, unit, worker, lease)
  local u = unit_key(id, unit)
  redis.call('HSET', u, 'state', 'leased', 'until', now() + lease, 'worker', worker)
  redis.call('HSETNX', u, 'token', now())  -- above any token given before this ledger was lost and rebuilt
  local token = redis.call('HINCRBY', u, 'token', 1)
  local attempt = redis.call('HINCRBY', u, 'attempts', 1)
  if redis.call('ZADD', P .. 'leases', now() + lease, member(id, unit)) == 1 then redis.call('HINCRBY', job_key(id), 'leased', 1) end
  redis.call('ZREM', P .. 'sent', member(id, unit))
  move(id, 'running')
  return { 'granted', tostring(token), attempt }
end

local ops = {}

-- id, idempotency key or '', kind, spec, unit -> the id of the job, which is an earlier one if the key was used before
function ops.create(id, idem, kind, spec, unit)
  if idem ~= '' then
    local known = redis.call('GET', P .. 'idem:' .. idem)
    if known then return known end
    redis.call('SET', P .. 'idem:' .. idem, id, 'EX', 86400)
  end
  if redis.call('EXISTS', job_key(id)) == 1 then return id end
  local t = now()
  redis.call('HSET', job_key(id), 'kind', kind, 'state', 'queued', 'spec', spec, 'created', t, 'leased', 0, 'waiting', 1, 'units', 1, 'units_done', 0)
  redis.call('ZADD', P .. 'jobs', 0, id)  -- equal scores: in the order of the ids, which is that of time
  redis.call('SADD', P .. 'state:queued', id)
  redis.call('HSET', unit_key(id, unit), 'state', 'waiting')
  mark_sent(id, unit, t)
  return id
end

-- id, unit, worker, lease in ms -> {'granted', token, attempt, units to send now ...} or {'over' | 'done' | 'leased' | 'gone'}
function ops.claim(id, unit, worker, lease)
  local job, u = job_key(id), unit_key(id, unit)
  local state, ustate = redis.call('HGET', job, 'state'), redis.call('HGET', u, 'state')
  if not state or not ustate then
    redis.call('ZREM', P .. 'sent', member(id, unit))
    return { 'gone' }
  end
  if terminal(state) or stopping(id) then
    redis.call('ZREM', P .. 'sent', member(id, unit))
    if ustate == 'waiting' and not terminal(state) then
      redis.call('HINCRBY', job, 'waiting', -1)
      put_back(id, unit)
    end
    rest(id)
    return { 'over' }
  end
  if ustate == 'done' then return { 'done' } end
  if ustate == 'unsent' then return { 'gone' } end
  if ustate == 'leased' then
    if int(u, 'until') > now() then return { 'leased' } end
  else
    redis.call('HINCRBY', job, 'waiting', -1)
  end
  local answer = lease_to(id, unit, worker, lease)
  for _, name in ipairs(next_units(id)) do answer[#answer + 1] = name end
  return answer
end

-- id, worker, lease in ms -> {unit, token, attempt} or nothing: the next unit that was not sent, without a message for it
function ops.take(id, worker, lease)
  local state = redis.call('HGET', job_key(id), 'state')
  if not state or terminal(state) or stopping(id) then return {} end
  local unit = next_unsent(id)
  if not unit then return {} end
  local answer = lease_to(id, unit, worker, lease)
  answer[1] = unit
  return answer
end

-- id, unit, token, lease in ms, progress or '' -> 'ok' | 'cancel' | 'pause' | 'lost'
function ops.renew(id, unit, token, lease, progress)
  local job = job_key(id)
  if not holds(id, unit, token) or terminal(redis.call('HGET', job, 'state')) then return 'lost' end
  redis.call('HSET', unit_key(id, unit), 'until', now() + lease)
  redis.call('ZADD', P .. 'leases', now() + lease, member(id, unit))
  if progress ~= '' then redis.call('HSET', job, 'progress', progress) end
  if redis.call('HGET', job, 'cancel') == '1' then return 'cancel' end
  if redis.call('HGET', job, 'pause') == '1' then return 'pause' end
  return 'ok'
end

-- id, unit, token -> 1 or 0 (lease lost): what the unit did so far is on storage, so that the attempts that led there do not count
function ops.kept(id, unit, token)
  if not holds(id, unit, token) then return 0 end
  redis.call('HSET', unit_key(id, unit), 'attempts', 1)
  return 1
end

-- id, unit, token, list name, serial number of the first row, rows ... -> 1 or 0 (lease lost)
function ops.append(id, unit, token, list, first, ...)
  if not holds(id, unit, token) then return 0 end
  local key = job_key(id) .. ':' .. list
  if first == 0 then redis.call('DEL', key) end
  if redis.call('LLEN', key) == first then redis.call('RPUSH', key, ...) end
  return 1
end

-- id, unit, token, tally (JSON: {counts = {field: n}, hashes = {name: {field: n}}, latest = [text]}), stretches of shards
-- that this unit has planned (JSON list of `<first>-<last>/<size>`), unit that follows at once or '', unit that follows all others or ''
-- -> units to send now, or false when the lease is lost. The unit is done and counted, exactly once.
function ops.commit(id, unit, token, tally, stretches, following, last)
  local job, u = job_key(id), unit_key(id, unit)
  if redis.call('HGET', u, 'state') == 'done' and redis.call('HGET', u, 'token') == token then return next_units(id) end
  if not holds(id, unit, token) or terminal(redis.call('HGET', job, 'state')) then return false end
  redis.call('HSET', u, 'state', 'done')
  redis.call('EXPIRE', u, MINUTES)
  drop_lease(id, unit)
  local t = cjson.decode(tally)
  for field, n in pairs(t.counts or {}) do redis.call('HINCRBY', job, field, n) end
  for name, fields in pairs(t.hashes or {}) do
    for field, n in pairs(fields) do redis.call('HINCRBY', job .. ':' .. name, field, n) end
  end
  for _, row in ipairs(t.latest or {}) do redis.call('LPUSH', job .. ':latest', row) end
  redis.call('LTRIM', job .. ':latest', 0, 47)
  for _, stretch in ipairs(cjson.decode(stretches)) do
    local first, stop, size = string.match(stretch, '^(%d+)-(%d+)/(%d+)$')
    redis.call('RPUSH', job .. ':unsent', stretch)
    redis.call('HINCRBY', job, 'units', math.ceil((stop - first) / size))
  end
  if following ~= '' then
    put_back(id, following)
    redis.call('HINCRBY', job, 'units', 1)
  end
  if last ~= '' then redis.call('HSET', job, 'last', last) end
  local done = redis.call('HINCRBY', job, 'units_done', 1)
  local final = redis.call('HGET', job, 'last')
  if final and done == int(job, 'units') and final ~= unit then
    put_back(id, final)
    redis.call('HINCRBY', job, 'units', 1)
  end
  if rest(id) then return {} end
  return next_units(id)
end

-- id, unit, token, units that replace it (JSON list) -> units to send now, or false
function ops.split(id, unit, token, halves)
  if not holds(id, unit, token) then return false end
  local job = job_key(id)
  drop_lease(id, unit)
  redis.call('DEL', unit_key(id, unit))
  local list = cjson.decode(halves)
  for i = #list, 1, -1 do put_back(id, list[i]) end
  redis.call('HINCRBY', job, 'units', #list - 1)
  if rest(id) then return {} end
  return next_units(id)
end

-- id, unit, token, note, 1 if the attempt is not to be counted: gives the unit back -> 1 or 0
function ops.release(id, unit, token, note, uncounted)
  if not holds(id, unit, token) then return 0 end
  local job, u = job_key(id), unit_key(id, unit)
  if uncounted == 1 then redis.call('HINCRBY', u, 'attempts', -1) end
  if note ~= '' then redis.call('HSET', job, 'note', note) end
  drop_lease(id, unit)
  wait_for_another(id, unit)
  if rest(id) then return 1 end
  if int(job, 'units') == 1 and not stopping(id) then wait_again(id) end
  return 1
end

-- id, unit, token, state, error, result: the unit was the job's last and ends it -> 1 or 0
function ops.finish(id, unit, token, state, error, result)
  local job = job_key(id)
  if redis.call('HGET', job, 'state') == state and redis.call('HGET', unit_key(id, unit), 'token') == token then return 1 end
  if not holds(id, unit, token) then return 0 end
  redis.call('HSET', unit_key(id, unit), 'state', 'done')
  redis.call('EXPIRE', unit_key(id, unit), MINUTES)
  drop_lease(id, unit)
  if state == 'done' then redis.call('HINCRBY', job, 'units_done', 1) end
  if error ~= '' then redis.call('HSET', job, 'error', error) end
  if result ~= '' then redis.call('HSET', job, 'result', result) end
  if not move(id, state) then return 0 end
  return 1
end

-- id -> state afterwards, or false: nobody knows this job
function ops.cancel(id)
  local job = job_key(id)
  local state = redis.call('HGET', job, 'state')
  if not state or terminal(state) then return state end
  redis.call('HSET', job, 'cancel', 1)
  rest(id)
  return redis.call('HGET', job, 'state')
end

-- id, why or '' -> state afterwards, or false: nobody knows this job
function ops.pause(id, why)
  local job = job_key(id)
  local state = redis.call('HGET', job, 'state')
  if not state or terminal(state) then return state end
  redis.call('HSET', job, 'pause', 1)
  if why ~= '' then redis.call('HSET', job, 'note', why) end
  rest(id)
  return redis.call('HGET', job, 'state')
end

-- id -> units to send now, or false: nobody knows this job
function ops.resume(id)
  local job = job_key(id)
  local state = redis.call('HGET', job, 'state')
  if not state then return false end
  redis.call('HDEL', job, 'pause', 'note')
  if state == 'paused' then move(id, 'queued') end
  return next_units(id)
end

-- id, error -> 1, or 0 if the job had ended before: ends it, whatever its workers do; they notice when they renew
function ops.fail(id, error)
  local job = job_key(id)
  local state = redis.call('HGET', job, 'state')
  if not state or terminal(state) then return 0 end
  redis.call('HSET', job, 'error', error)
  move(id, 'failed')
  return 1
end

-- id, fields of the job (JSON list: name, value, ...), histograms (JSON {name: {field: n}}), units to do (JSON list)
-- -> 1, or 0 if the ledger knows the job: what `recover` found on storage; the sweeper sends its units
function ops.restore(id, fields, hashes, units)
  local job = job_key(id)
  if redis.call('EXISTS', job) == 1 then return 0 end
  redis.call('HSET', job, unpack(cjson.decode(fields)))
  redis.call('ZADD', P .. 'jobs', 0, id)
  redis.call('SADD', P .. 'state:' .. redis.call('HGET', job, 'state'), id)
  for name, counts in pairs(cjson.decode(hashes)) do
    for field, n in pairs(counts) do redis.call('HSET', job .. ':' .. name, field, n) end
  end
  for _, unit in ipairs(cjson.decode(units)) do redis.call('RPUSH', job .. ':unsent', unit) end
  next_units(id)
  return 1
end

-- id, unit, note: called by the sweeper for a lease that ran out -> 'again' | 'ended' | 'held'
function ops.expire(id, unit, note)
  local job, u = job_key(id), unit_key(id, unit)
  if int(u, 'until') > now() and redis.call('HGET', u, 'state') == 'leased' then return 'held' end
  drop_lease(id, unit)
  if redis.call('HGET', u, 'state') ~= 'leased' then return 'ended' end
  local state = redis.call('HGET', job, 'state')
  if not state or terminal(state) then return 'ended' end
  redis.call('HSET', job, 'note', note)
  wait_for_another(id, unit)
  if rest(id) then return 'ended' end
  if int(job, 'units') == 1 and not stopping(id) then wait_again(id) end
  return 'again'
end

-- id, unit -> 1 if the sweeper should send it again now (still waiting, job not over); its clock starts anew
function ops.resend(id, unit)
  local state = redis.call('HGET', job_key(id), 'state')
  local ustate = redis.call('HGET', unit_key(id, unit), 'state')
  if not state or terminal(state) or ustate ~= 'waiting' then
    redis.call('ZREM', P .. 'sent', member(id, unit))
    return 0
  end
  redis.call('HINCRBY', unit_key(id, unit), 'sends', 1)
  mark_sent(id, unit, now())
  return 1
end

local args = {}
for i = 2, #ARGV do args[#args + 1] = ARGV[i] end
local numbers = { claim = { 4 }, take = { 3 }, renew = { 4 }, append = { 5 }, release = { 5 } }
for _, i in ipairs(numbers[ARGV[1]] or {}) do args[i] = tonumber(args[i]) end
return ops[ARGV[1]](unpack(args))
