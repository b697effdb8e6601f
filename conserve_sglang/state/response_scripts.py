"""What replicas do in Redis with the responses that clients may go on from, each an atomic script.

    {ns}:r:TENANT:ID         one response: m (what it added), p (the response before it), b (bytes
                             it counts for); after a client deleted it, x alone
    {ns}:responses           BYTES:TENANT:ID of each, by the microsecond in which it expires
    {ns}:responses_bytes     the sum of these bytes

A response lives as long as a conversation at rest; each use of a history renews all of it. Who
deletes one, and who wants to know whether all has been written, says so on {ns}:all.
"""

_COMMON = """
local P, me, ttl, tenant = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local call = redis.call
local used, total = P .. 'responses', P .. 'responses_bytes'
local time = call('TIME')
local now_us = time[1] * 1000000 + time[2]
local function key_of(name) return P .. 'r:' .. tenant .. ':' .. name end
local function member_of(name, bytes) return bytes .. ':' .. tenant .. ':' .. name end
local function live_on(name, bytes)
  call('PEXPIRE', key_of(name), ttl)
  call('ZADD', used, now_us + ttl * 1000, member_of(name, bytes))
end
local function count_on()
  call('PEXPIRE', used, ttl)
  call('PEXPIRE', total, ttl)
end
"""

KEEP = (
    _COMMON
    + """
local name, messages, previous, bytes, max = ARGV[5], ARGV[6], ARGV[7], ARGV[8], tonumber(ARGV[9])
local key = key_of(name)
if call('EXISTS', key) == 1 then return call('HEXISTS', key, 'm') end
call('HSET', key, 'm', messages, 'p', previous, 'b', bytes)
local sum = call('INCRBY', total, bytes)
live_on(name, bytes)
count_on()
local num_expired = 0
while true do
  local first = call('ZRANGE', used, 0, 0, 'WITHSCORES')
  if not first[1] then break end
  local is_expired = num_expired < 256 and tonumber(first[2]) <= now_us
  if sum <= max and not is_expired then break end
  if is_expired then num_expired = num_expired + 1 end
  local freed, whose = first[1]:match('^(%d+):(.*)$')
  call('ZREM', used, first[1])
  call('DEL', P .. 'r:' .. whose)
  sum = call('DECRBY', total, freed)
end
return 1
"""
)
"""TENANT ID MESSAGES PREVIOUS BYTES MAX_BYTES: keep a response, and let go of those used longest
ago; 0 if a client deleted it."""

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
local bytes = call('HGET', key, 'b')
if bytes then
  call('ZREM', used, member_of(name, bytes))
  call('DECRBY', total, bytes)
  call('PEXPIRE', total, ttl)
elseif not is_certain then
  return call('EXISTS', key) == 1 and 'deleted' or 'missing'
end
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
