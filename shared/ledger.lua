-- Every change of the ledger, one operation a call, atomic. Keys and meanings: shared/jobs.py. ARGV[1] names the operation.
-- Each operation is safe to repeat: redis-py sends a command again when its answer was lost.
-- `P` (key prefix) and `MOVES` (legal moves, from shared/jobs.py) are defined by the lines put before this file.

local WEEK = 604800  -- how long a finished unit answers a late message with 'done'

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

-- A cancelled job ends when nobody works on it any more.
local function end_if_cancelled(id)
  local job = job_key(id)
  if redis.call('HGET', job, 'cancel') == '1' and int(job, 'leased') <= 0 then return move(id, 'cancelled') end
  return false
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

-- Keeps at most `window` units of a job in the queue or leased, so that a giant batch never fills the queue.
-- Answers the units that the caller should send now; if it dies first, the sweeper sends them.
local function next_units(id, window)
  local job = job_key(id)
  local out = {}
  if terminal(redis.call('HGET', job, 'state')) or redis.call('HGET', job, 'cancel') == '1' then return out end
  while int(job, 'moving') < window do
    local unit = redis.call('LPOP', job .. ':unsent')
    if not unit then break end
    redis.call('HSET', unit_key(id, unit), 'state', 'waiting')
    redis.call('HINCRBY', job, 'moving', 1)
    mark_sent(id, unit, now())
    out[#out + 1] = unit
  end
  return out
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
  redis.call('HSET', job_key(id), 'kind', kind, 'state', 'queued', 'spec', spec, 'created', t, 'leased', 0, 'moving', 1, 'units', 1, 'units_done', 0)
  redis.call('ZADD', P .. 'jobs', 0, id)  -- equal scores: in the order of the ids, which is that of time
  redis.call('SADD', P .. 'state:queued', id)
  redis.call('HSET', unit_key(id, unit), 'state', 'waiting')
  mark_sent(id, unit, t)
  return id
end

-- id, unit, worker, lease in ms -> {'granted', token, attempt} or {'over' | 'done' | 'leased' | 'gone'}
function ops.claim(id, unit, worker, lease)
  local job, u = job_key(id), unit_key(id, unit)
  local state, ustate = redis.call('HGET', job, 'state'), redis.call('HGET', u, 'state')
  if not state or not ustate then
    redis.call('ZREM', P .. 'sent', member(id, unit))
    return { 'gone' }
  end
  if terminal(state) or redis.call('HGET', job, 'cancel') == '1' then
    redis.call('ZREM', P .. 'sent', member(id, unit))
    end_if_cancelled(id)
    return { 'over' }
  end
  if ustate == 'done' then return { 'done' } end
  if ustate == 'leased' and int(u, 'until') > now() then return { 'leased' } end
  redis.call('HSET', u, 'state', 'leased', 'until', now() + lease, 'worker', worker)
  local token = redis.call('HINCRBY', u, 'token', 1)
  local attempt = redis.call('HINCRBY', u, 'attempts', 1)
  if redis.call('ZADD', P .. 'leases', now() + lease, member(id, unit)) == 1 then redis.call('HINCRBY', job, 'leased', 1) end
  redis.call('ZREM', P .. 'sent', member(id, unit))
  move(id, 'running')
  return { 'granted', tostring(token), attempt }
end

-- id, unit, token, lease in ms, progress or '' -> 'ok' | 'cancel' | 'lost'
function ops.renew(id, unit, token, lease, progress)
  local job = job_key(id)
  if not holds(id, unit, token) or terminal(redis.call('HGET', job, 'state')) then return 'lost' end
  redis.call('HSET', unit_key(id, unit), 'until', now() + lease)
  redis.call('ZADD', P .. 'leases', now() + lease, member(id, unit))
  if progress ~= '' then redis.call('HSET', job, 'progress', progress) end
  if redis.call('HGET', job, 'cancel') == '1' then return 'cancel' end
  return 'ok'
end

-- id, unit, token, list name, serial number of the first row, rows ... -> 1 or 0 (lease lost)
function ops.append(id, unit, token, list, first, ...)
  if not holds(id, unit, token) then return 0 end
  local key = job_key(id) .. ':' .. list
  if first == 0 then redis.call('DEL', key) end
  if redis.call('LLEN', key) == first then redis.call('RPUSH', key, ...) end
  return 1
end

-- id, unit, token, tally (JSON: {counts = {field: n}, hashes = {name: {field: n}}, latest = [text]}), units to add (JSON list),
-- last unit or '', window -> units to send now, or false when the lease is lost. The unit is done and counted, exactly once.
function ops.commit(id, unit, token, tally, more, last, window)
  local job, u = job_key(id), unit_key(id, unit)
  if redis.call('HGET', u, 'state') == 'done' and redis.call('HGET', u, 'token') == token then return next_units(id, window) end
  if not holds(id, unit, token) or terminal(redis.call('HGET', job, 'state')) then return false end
  redis.call('HSET', u, 'state', 'done')
  redis.call('EXPIRE', u, WEEK)
  drop_lease(id, unit)
  redis.call('HINCRBY', job, 'moving', -1)
  local t = cjson.decode(tally)
  for field, n in pairs(t.counts or {}) do redis.call('HINCRBY', job, field, n) end
  for name, fields in pairs(t.hashes or {}) do
    for field, n in pairs(fields) do redis.call('HINCRBY', job .. ':' .. name, field, n) end
  end
  for _, row in ipairs(t.latest or {}) do redis.call('LPUSH', job .. ':latest', row) end
  redis.call('LTRIM', job .. ':latest', 0, 47)
  local list = cjson.decode(more)
  for _, name in ipairs(list) do
    redis.call('HSET', unit_key(id, name), 'state', 'unsent')
    redis.call('RPUSH', job .. ':unsent', name)
  end
  if #list > 0 then redis.call('HINCRBY', job, 'units', #list) end
  if last ~= '' then redis.call('HSET', job, 'last', last) end
  local done = redis.call('HINCRBY', job, 'units_done', 1)
  local final = redis.call('HGET', job, 'last')
  if final and done == int(job, 'units') and final ~= unit then
    redis.call('HSET', unit_key(id, final), 'state', 'unsent')
    redis.call('RPUSH', job .. ':unsent', final)
    redis.call('HINCRBY', job, 'units', 1)
  end
  if end_if_cancelled(id) then return {} end
  return next_units(id, window)
end

-- id, unit, token, units that replace it (JSON list), window -> units to send now, or false
function ops.split(id, unit, token, halves, window)
  if not holds(id, unit, token) then return false end
  local job = job_key(id)
  drop_lease(id, unit)
  redis.call('DEL', unit_key(id, unit))
  redis.call('HINCRBY', job, 'moving', -1)
  local list = cjson.decode(halves)
  for _, name in ipairs(list) do
    redis.call('HSET', unit_key(id, name), 'state', 'unsent')
    redis.call('RPUSH', job .. ':unsent', name)
  end
  redis.call('HINCRBY', job, 'units', #list - 1)
  return next_units(id, window)
end

-- id, unit, token, note, 1 if the attempt is not to be counted: gives the unit back -> 1 or 0
function ops.release(id, unit, token, note, uncounted)
  if not holds(id, unit, token) then return 0 end
  local job, u = job_key(id), unit_key(id, unit)
  if uncounted == 1 then redis.call('HINCRBY', u, 'attempts', -1) end
  redis.call('HSET', u, 'state', 'waiting')
  if note ~= '' then redis.call('HSET', job, 'note', note) end
  drop_lease(id, unit)
  if end_if_cancelled(id) then return 1 end
  if int(job, 'units') == 1 then wait_again(id) end
  mark_sent(id, unit, 0)
  return 1
end

-- id, unit, token, state, error, result: the unit was the job's last and ends it -> 1 or 0
function ops.finish(id, unit, token, state, error, result)
  local job = job_key(id)
  if redis.call('HGET', job, 'state') == state and redis.call('HGET', unit_key(id, unit), 'token') == token then return 1 end
  if not holds(id, unit, token) then return 0 end
  redis.call('HSET', unit_key(id, unit), 'state', 'done')
  redis.call('EXPIRE', unit_key(id, unit), WEEK)
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
  end_if_cancelled(id)
  return redis.call('HGET', job, 'state')
end

-- id, unit, note: called by the sweeper for a lease that ran out -> 'again' | 'ended' | 'held'
function ops.expire(id, unit, note)
  local job, u = job_key(id), unit_key(id, unit)
  if int(u, 'until') > now() and redis.call('HGET', u, 'state') == 'leased' then return 'held' end
  drop_lease(id, unit)
  if redis.call('HGET', u, 'state') ~= 'leased' then return 'ended' end
  local state = redis.call('HGET', job, 'state')
  if not state or terminal(state) or end_if_cancelled(id) then return 'ended' end
  redis.call('HSET', u, 'state', 'waiting')
  redis.call('HSET', job, 'note', note)
  if int(job, 'units') == 1 then wait_again(id) end
  mark_sent(id, unit, 0)
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
local numbers = { claim = { 4 }, renew = { 4 }, append = { 5 }, commit = { 7 }, split = { 5 }, release = { 5 } }
for _, i in ipairs(numbers[ARGV[1]] or {}) do args[i] = tonumber(args[i]) end
return ops[ARGV[1]](unpack(args))
