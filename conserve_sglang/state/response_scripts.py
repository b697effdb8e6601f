"""What replicas do in Redis with the responses that clients may go on from, each an atomic script.

    {ns}:r:TENANT:ID         one response: m (what it added), p (the response before it), b (bytes
                             it counts for); after a client deleted it, x alone
    {ns}:responses           BYTES:TENANT:ID of each, by the microsecond in which it expires
    {ns}:responses_bytes     the sum of these bytes
    {ns}:o:TENANT:ID         the response object (m) and what it counts for (b)
    {ns}:objects, {ns}:objects_bytes    the same of these

A response lives as long as a conversation at rest; each use of a history renews all of it, and who
reads an object renews that. An object goes with its response, or before it. Who deletes one, and
who wants to know whether all has been written, says so on {ns}:all.
"""

_COMMON = """
local P, me, ttl, tenant = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local call = redis.call
local used, total = P .. 'responses', P .. 'responses_bytes'
local time = call('TIME')
local now_us = time[1] * 1000000 + time[2]
local used_of = {r = used, o = P .. 'objects'}
local total_of = {r = total, o = P .. 'objects_bytes'}
local function key_of(name, kind) return P .. (kind or 'r') .. ':' .. tenant .. ':' .. name end
local function live_on(name, bytes, kind)
  call('PEXPIRE', key_of(name, kind), ttl)
  call('ZADD', used_of[kind or 'r'], now_us + ttl * 1000, bytes .. ':' .. tenant .. ':' .. name)
end
local function count_on()
  for _, each in pairs(used_of) do call('PEXPIRE', each, ttl) end
  for _, each in pairs(total_of) do call('PEXPIRE', each, ttl) end
end
local function drop(kind, whose)
  local key = P .. kind .. ':' .. whose
  local bytes = call('HGET', key, 'b')
  if not bytes then return false end
  call('ZREM', used_of[kind], bytes .. ':' .. whose)
  call('DECRBY', total_of[kind], bytes)
  call('DEL', key)
  return true
end
"""

KEEP = (
    _COMMON
    + """
local function make_room(kind, sum, max)
  local num_expired = 0
  while true do
    local first = call('ZRANGE', used_of[kind], 0, 0, 'WITHSCORES')
    if not first[1] then break end
    local is_expired = num_expired < 256 and tonumber(first[2]) <= now_us
    if sum <= max and not is_expired then break end
    if is_expired then num_expired = num_expired + 1 end
    local freed, whose = first[1]:match('^(%d+):(.*)$')
    call('ZREM', used_of[kind], first[1])
    call('DEL', P .. kind .. ':' .. whose)
    sum = call('DECRBY', total_of[kind], freed)
    if kind == 'r' then drop('o', whose) end
  end
end
local name, messages, previous, bytes, max = ARGV[5], ARGV[6], ARGV[7], ARGV[8], tonumber(ARGV[9])
local object, object_bytes, object_max = ARGV[10], ARGV[11], tonumber(ARGV[12])
local key = key_of(name)
if call('EXISTS', key) == 1 then return call('HEXISTS', key, 'm') end
call('HSET', key, 'm', messages, 'p', previous, 'b', bytes)
live_on(name, bytes)
local sum = call('INCRBY', total, bytes)
if object ~= '' then
  call('HSET', key_of(name, 'o'), 'm', object, 'b', object_bytes)
  live_on(name, object_bytes, 'o')
  make_room('o', call('INCRBY', total_of.o, object_bytes), object_max)
end
make_room('r', sum, max)
count_on()
return 1
"""
)
"""TENANT ID MESSAGES PREVIOUS BYTES MAX_BYTES OBJECT OBJECT_BYTES MAX_OBJECT_BYTES: keep a response
and, unless that is '', its object, and let go of those used longest ago; 0 if a client deleted
it."""

CHAIN = (
    _COMMON
    + """
local at, found = ARGV[5], {}
count_on()
for _ = 1, tonumber(ARGV[6]) do
  if at == '' then break end
  local key = key_of(at)
  local had = call('HMGET', key, 'p', 'b')
  if not had[1] then
    return {call('EXISTS', key) == 1 and 'deleted' or 'missing', at, found}
  end
  live_on(at, had[2])
  found[#found + 1] = at
  found[#found + 1] = call('HSTRLEN', key, 'm')
  at = had[1]
end
return {'found', at, found}
"""
)
"""TENANT ID LIMIT: use a response and those before it; each one's id and length, and where to go
on, '' at the beginning."""

TEXTS = (
    _COMMON
    + """
local found = {}
for i = 5, #ARGV do found[i - 4] = call('HGET', key_of(ARGV[i]), 'm') or '' end
return found
"""
)
"""TENANT ID...: what each of these added, '' for what is gone."""

OBJECT = (
    _COMMON
    + """
local name = ARGV[5]
local key, at = key_of(name), key_of(name, 'o')
local bytes = call('HGET', key, 'b')
if not bytes then return {call('EXISTS', key) == 1 and 'deleted' or 'missing', ''} end
count_on()
live_on(name, bytes)
local had = call('HMGET', at, 'm', 'b')
if had[1] then live_on(name, had[2], 'o') end
return {'found', had[1] or ''}
"""
)
"""TENANT ID: use a response for its object, '' where that is gone."""

KNOWN = """
local found = {}
for i = 4, #ARGV, 2 do
  local key = ARGV[1] .. 'r:' .. ARGV[i] .. ':' .. ARGV[i + 1]
  local state = redis.call('HEXISTS', key, 'm') == 1 and 'kept'
  found[#found + 1] = state or redis.call('EXISTS', key) == 1 and 'deleted' or 'missing'
end
return found
"""
"""(TENANT ID)...: what has become of each."""

DELETE = (
    _COMMON
    + """
local name, is_certain = ARGV[5], ARGV[6] == '1'
local key = key_of(name)
local whose = tenant .. ':' .. name
drop('o', whose)
if not drop('r', whose) and not is_certain then
  return call('EXISTS', key) == 1 and 'deleted' or 'missing'
end
count_on()
call('DEL', key)
call('HSET', key, 'x', 1)
call('PEXPIRE', key, ttl)
call('PUBLISH', P .. 'all', 'deleted ' .. tenant .. ' ' .. name)
return 'found'
"""
)
"""TENANT ID IS_CERTAIN: a client deletes a response, if there is one; where it is certain that a
client did, whether or not there is one."""

FLUSH = """
local names = redis.call('PUBSUB', 'CHANNELS', ARGV[1] .. 'to:*')
redis.call('PUBLISH', ARGV[1] .. 'all', 'flush ' .. ARGV[4] .. ' ' .. ARGV[2])
return names
"""
"""NUMBER: have each replica say when it has written all that it had; where they listen."""

FLUSHED = """
redis.call('PUBLISH', ARGV[1] .. 'to:' .. ARGV[4], 'flushed ' .. ARGV[5] .. ' ' .. ARGV[2])
return 1
"""
"""REPLICA NUMBER: this replica has written all that it had."""
