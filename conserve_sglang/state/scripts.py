"""What replicas do in Redis, each an atomic script.

    {ns}:secret      the secret that all replicas derive keys and hashes with
    {ns}:c:KEY       one conversation: owner (who served it last), n (how often that changed), pin,
                     row (a packed SavedConversation), and where its history is filed
    {ns}:h:DIGEST    the conversations whose history ended there
    {ns}:l:BLOCK     of prompts: how many ended so many bytes after this block
    {ns}:load:ID     what a replica has on the workers, while it lives
    {ns}:replicas    their names

Who is no longer the owner is told so on {ns}:to:ID; the end of a conversation is told on {ns}:all.
"""

_COMMON = """
local P, me, ttl = ARGV[1], ARGV[2], ARGV[3]
local call = redis.call
local function claim(key)
  local c = P .. 'c:' .. key
  local had = call('HMGET', c, 'owner', 'n', 'pin', 'row')
  local n = tonumber(had[2] or '0')
  if had[1] ~= me then
    n = n + 1
    call('HSET', c, 'owner', me, 'n', n)
    if had[1] then call('PUBLISH', P .. 'to:' .. had[1], 'taken ' .. n .. ' ' .. key) end
  end
  call('PEXPIRE', c, ttl)
  return {n, had[1] == me and 1 or 0, had[3] or '', had[4] or ''}
end
local function unfile(c, key)
  local at = call('HMGET', c, 'at', 'block', 'bytes')
  if not at[1] then return end
  call('LREM', P .. 'h:' .. at[1], 1, key)
  if at[2] and at[2] ~= '' then
    local lengths = P .. 'l:' .. at[2]
    if call('HINCRBY', lengths, at[3], -1) <= 0 then call('HDEL', lengths, at[3]) end
  end
  call('HDEL', c, 'at', 'block', 'bytes')
end
"""

CLAIM = (
    _COMMON
    + """
if ARGV[5] == '1' and call('EXISTS', P .. 'c:' .. ARGV[4]) == 0 then return false end
return claim(ARGV[4])
"""
)
"""KEY MUST_EXIST: serve a conversation from now on; what is known of it."""

PIN = (
    _COMMON
    + """
local key, expected, wanted = ARGV[4], ARGV[5], ARGV[6]
local had = claim(key)
if had[3] ~= expected and had[3] ~= wanted then return {0, had[1], had[3], had[4]} end
call('HSET', P .. 'c:' .. key, 'pin', wanted)
return {1, had[1], wanted, ''}
"""
)
"""KEY EXPECTED WANTED: pin a conversation, unless somebody pinned it meanwhile."""

TAKE = (
    _COMMON
    + """
for i = 4, #ARGV do
  local list = P .. 'h:' .. ARGV[i]
  while true do
    local key = call('RPOP', list)
    if not key then break end
    local c = P .. 'c:' .. key
    if call('HGET', c, 'at') == ARGV[i] then
      unfile(c, key)
      return {i - 4, key, claim(key)}
    end
  end
end
return false
"""
)
"""DIGEST...: the conversation filed under the first of these that has one; serve it from now on."""

LENGTHS = """
local found = {}
for i = 4, #ARGV do found[i - 3] = redis.call('HKEYS', ARGV[1] .. 'l:' .. ARGV[i]) end
return found
"""
"""BLOCK...: of each, after how many bytes prompts ended."""

WRITE = (
    _COMMON
    + """
local key, row, pin, at, block, bytes = ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local c = P .. 'c:' .. key
local had = call('HMGET', c, 'owner', 'n', 'pin')
if had[1] and had[1] ~= me then return {0, 0, had[3] or ''} end
if (call('HGET', c, 'at') or '') ~= at then
  unfile(c, key)
  if row ~= '' and at ~= '' then
    call('RPUSH', P .. 'h:' .. at, key)
    if block ~= '' then
      call('HINCRBY', P .. 'l:' .. block, bytes, 1)
    end
    call('HSET', c, 'at', at, 'block', block, 'bytes', bytes)
  end
end
if row == '' then
  call('DEL', c)
  return {1, 0, ''}
end
if at ~= '' then call('PEXPIRE', P .. 'h:' .. at, ttl) end
if block ~= '' then call('PEXPIRE', P .. 'l:' .. block, ttl) end
call('HSET', c, 'owner', me, 'row', row, 'pin', pin)
call('PEXPIRE', c, ttl)
return {1, tonumber(had[2] or '0'), pin}
"""
)
"""KEY ROW PIN AT BLOCK BYTES: what became of a conversation; refused if another replica has it.
Without a row it is over."""

READ = """
return redis.call('HGET', ARGV[1] .. 'c:' .. ARGV[4], 'row') or ''
"""
"""KEY: a conversation's row, '' if there is none."""

LOADS = (
    _COMMON
    + """
call('SET', P .. 'load:' .. me, ARGV[4], 'PX', ARGV[5])
call('SADD', P .. 'replicas', me)
local others = {}
for _, id in ipairs(call('SMEMBERS', P .. 'replicas')) do
  if id ~= me then
    local load = call('GET', P .. 'load:' .. id)
    if load then others[#others + 1] = load else call('SREM', P .. 'replicas', id) end
  end
end
return others
"""
)
"""LOAD MILLISECONDS: say what this replica has on the workers for so long; what the others say."""

ENDED = """
redis.call('PUBLISH', ARGV[1] .. 'all', 'ended ' .. ARGV[2] .. ' ' .. ARGV[4])
return 1
"""
"""KEY: tell all replicas that a conversation's client ended it."""

LEFT = """
redis.call('DEL', ARGV[1] .. 'load:' .. ARGV[2])
redis.call('SREM', ARGV[1] .. 'replicas', ARGV[2])
return 1
"""
"""This replica is about to end."""
