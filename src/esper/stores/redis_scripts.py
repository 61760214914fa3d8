"""Lua scripts of a Redis store; each is one step that no other client can come between.

Keys, in this order: ``schema`` (text), ``meta``, ``ids``, ``writers``, ``leases``, ``scopes``
(hashes), then one stream for each scope of a call. ``meta`` holds ``identity``, ``last`` (latest
position), and how many ``ids``, ``writers`` and ``scopes`` there should be; ``ids`` the position
and scope of each operation id; ``writers`` each writer's next number; ``scopes`` the length of
each stream. So a key that the server evicted, or lost when it was restarted, is missed by the next
script.
"""

PARTS = ("schema", "meta", "ids", "writers", "leases", "scopes")

_TYPES = """
for index, key in ipairs(KEYS) do
  local found = redis.call('TYPE', key)['ok']
  local wanted = index == 1 and 'string' or index <= 6 and 'hash' or 'stream'
  if found ~= wanted and found ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. found)
  end
end
local version = redis.call('GET', KEYS[1])
"""

# ARGV: schema, identity if there is none yet.
BEGIN = (
    _TYPES
    + """
if version and tonumber(version) ~= nil and tonumber(version) > tonumber(ARGV[1]) then
  return {'schema', version}
end
if version ~= ARGV[1] then redis.call('SET', KEYS[1], ARGV[1]) end
redis.call('HSETNX', KEYS[2], 'identity', ARGV[2])
return {'identity', redis.call('HGET', KEYS[2], 'identity')}
"""
)

# ARGV: schema, identity, number of claims, writer and holder of each, then ten texts an event:
# index of its stream, op_id, kind, scope, run, data, schema, writer, number, first number.
APPEND = (
    _TYPES
    + """
if version ~= ARGV[1] and version then return {'schema', version} end
if redis.call('HGET', KEYS[2], 'identity') ~= ARGV[2] or not version then return {'loss'} end
local function count(key, field) return tonumber(redis.call('HGET', key, field) or '0') end
if redis.call('HLEN', KEYS[3]) ~= count(KEYS[2], 'ids')
    or redis.call('HLEN', KEYS[4]) ~= count(KEYS[2], 'writers')
    or redis.call('HLEN', KEYS[6]) ~= count(KEYS[2], 'scopes') then
  return {'loss'}
end
local at = 4
for i = 1, tonumber(ARGV[3]) do
  local lease = redis.call('HGET', KEYS[5], ARGV[at])
  if lease and string.match(lease, '^%S+ (.*)$') ~= ARGV[at + 1] then return {'lease', i} end
  at = at + 2
end
local told, new, following, lengths = {}, {}, {}, {}
local repeated, conflicts = {}, {'conflict'}
for i = at, #ARGV, 10 do
  local stream, op_id = KEYS[6 + tonumber(ARGV[i])], ARGV[i + 1]
  local scope, writer = ARGV[i + 3], ARGV[i + 7]
  if not lengths[stream] then
    lengths[stream] = {scope, redis.call('XLEN', stream)}
    if lengths[stream][2] < count(KEYS[6], scope) then return {'loss'} end
  end
  local number = tonumber(ARGV[i + 8])
  if number >= 0 then
    local next = following[writer] or count(KEYS[4], writer)
    if tonumber(ARGV[i + 9]) > next then return {'hole', (i - at) / 10, next} end
    following[writer] = math.max(next, number + 1)
  end
  local found = told[op_id]
  if not found then
    local place = redis.call('HGET', KEYS[3], op_id)
    if place then
      local position, of = string.match(place, '^(%S+) (.*)$')
      found = {of}
      if of == scope then
        local entry = redis.call('XRANGE', stream, position .. '-0', position .. '-0')[1]
        if not entry then return {'loss'} end
        found = {of, entry[2][4], entry[2][10]}
      end
      if number >= 0 and number >= count(KEYS[4], writer) then repeated[#repeated + 1] = i end
    else
      found = {scope, ARGV[i + 2], ARGV[i + 5]}
      new[#new + 1] = i
    end
    told[op_id] = found
  end
  if found[1] ~= scope or found[2] ~= ARGV[i + 2] or found[3] ~= ARGV[i + 5] then
    conflicts[#conflicts + 1] = (i - at) / 10
  end
end
if #conflicts > 1 then return conflicts end
local time = redis.call('TIME')
local last = math.max(count(KEYS[2], 'last'), tonumber(time[1]) * 1000000 + tonumber(time[2]))
local function add(i, op_id, kind, data)
  local stream = KEYS[6 + tonumber(ARGV[i])]
  last = last + 1
  local position = string.format('%.0f', last)
  redis.call('HSET', KEYS[3], op_id, position .. ' ' .. ARGV[i + 3])
  redis.call('XADD', stream, position .. '-0', 'op_id', op_id, 'kind', kind,
             'scope', ARGV[i + 3], 'run', ARGV[i + 4], 'data', data,
             'schema', ARGV[i + 6], 'writer', ARGV[i + 7], 'number', ARGV[i + 8])
  lengths[stream][2] = lengths[stream][2] + 1
end
for _, i in ipairs(new) do add(i, ARGV[i + 1], ARGV[i + 2], ARGV[i + 5]) end
for _, i in ipairs(repeated) do
  add(i, ARGV[i + 7] .. '//again/' .. ARGV[i + 8], 'again', cjson.encode({of = ARGV[i + 1]}))
end
for writer, next in pairs(following) do redis.call('HSET', KEYS[4], writer, next) end
for _, one in pairs(lengths) do redis.call('HSET', KEYS[6], one[1], one[2]) end
redis.call('HSET', KEYS[2], 'last', string.format('%.0f', last),
           'ids', redis.call('HLEN', KEYS[3]), 'writers', redis.call('HLEN', KEYS[4]),
           'scopes', redis.call('HLEN', KEYS[6]))
return {'stored'}
"""
)

# Make everything anew from the streams that are there. ARGV: schema, identity if there is none.
REBUILD = (
    _TYPES
    + """
redis.call('SET', KEYS[1], ARGV[1])
redis.call('HSETNX', KEYS[2], 'identity', ARGV[2])
local before = redis.call('HVALS', KEYS[6])
redis.call('DEL', KEYS[3], KEYS[4], KEYS[6])
local last, length = tonumber(redis.call('HGET', KEYS[2], 'last') or '0'), 0
for index = 7, #KEYS do
  local scope, writers = nil, {}
  for _, entry in ipairs(redis.call('XRANGE', KEYS[index], '-', '+')) do
    local fields = {}
    for i = 1, #entry[2], 2 do fields[entry[2][i]] = entry[2][i + 1] end
    local position = string.match(entry[1], '^(%d+)')
    if fields['op_id'] and fields['scope'] then
      scope = fields['scope']
      redis.call('HSET', KEYS[3], fields['op_id'], position .. ' ' .. scope)
      local number = tonumber(fields['number'] or '-1') or -1
      if number >= 0 then
        local writer = fields['writer']
        writers[writer] = math.max(writers[writer] or 0, number + 1)
      end
    end
    last = math.max(last, tonumber(position))
    length = length + 1
  end
  if scope then redis.call('HSET', KEYS[6], scope, redis.call('XLEN', KEYS[index])) end
  for writer, next in pairs(writers) do redis.call('HSET', KEYS[4], writer, next) end
end
redis.call('HSET', KEYS[2], 'last', string.format('%.0f', last),
           'ids', redis.call('HLEN', KEYS[3]), 'writers', redis.call('HLEN', KEYS[4]),
           'scopes', redis.call('HLEN', KEYS[6]))
local lost = -length
for _, n in ipairs(before) do lost = lost + tonumber(n) end
return {redis.call('HGET', KEYS[2], 'identity'), math.max(lost, 0)}
"""
)

# ARGV: writer, holder, seconds, holder that may be replaced although its lease goes on.
CLAIM = """
local now = redis.call('TIME')
now = tonumber(now[1]) + tonumber(now[2]) / 1000000
local lease = redis.call('HGET', KEYS[1], ARGV[1])
if lease then
  local until_, holder = string.match(lease, '^(%S+) (.*)$')
  local left = tonumber(until_) - now
  if holder ~= ARGV[2] and holder ~= ARGV[4] and left > 0 then
    if left > tonumber(ARGV[3]) then -- the clock was put back
      left = tonumber(ARGV[3])
      redis.call('HSET', KEYS[1], ARGV[1], string.format('%.6f ', now + left) .. holder)
    end
    return {holder, math.ceil(left)}
  end
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.6f ', now + tonumber(ARGV[3])) .. ARGV[2])
return {}
"""

# ARGV: writer, holder.
RELEASE = """
local lease = redis.call('HGET', KEYS[1], ARGV[1])
if lease and string.match(lease, '^%S+ (.*)$') == ARGV[2] then
  redis.call('HDEL', KEYS[1], ARGV[1])
end
return 0
"""

# ARGV: name, holder, seconds; the key is a hash of one group: until when, and who. 1 if reserved.
RESERVE = """
local now = redis.call('TIME')
now = tonumber(now[1]) + tonumber(now[2]) / 1000000
local found = redis.call('HGET', KEYS[1], ARGV[1])
if found then
  local until_, holder = string.match(found, '^(%S+) (.*)$')
  if holder ~= ARGV[2] and tonumber(until_) > now then return 0 end
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.6f ', now + tonumber(ARGV[3])) .. ARGV[2])
return 1
"""

# Name and holder of each that is reserved now.
RESERVED = """
local now = redis.call('TIME')
now = tonumber(now[1]) + tonumber(now[2]) / 1000000
local entries, held = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #entries, 2 do
  local until_, holder = string.match(entries[i + 1], '^(%S+) (.*)$')
  if tonumber(until_) > now then
    held[#held + 1] = entries[i]
    held[#held + 1] = holder
  end
end
return held
"""
