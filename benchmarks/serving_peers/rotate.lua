-- One request per line of the first argument's file, one after another: a body, or the path, the client's name and the
-- body, with tabs between them. The second argument is the body's media type.
-- Prints one JSON object: what went well, what did not, and latencies in microseconds.
local threads = {}
function setup(thread) table.insert(threads, thread) end

function init(arguments)
  requests, at, bad = {}, 0, 0
  for line in io.lines(arguments[1]) do
    local path, client, body = line:match("^(/[^\t]*)\t([^\t]*)\t(.*)$")
    local headers = { ["Content-Type"] = arguments[2], ["X-Client-ID"] = client }
    requests[#requests + 1] = wrk.format("POST", path, headers, body or line)
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function response(status)
  if status < 200 or status > 299 then bad = bad + 1 end
end

function done(summary, latency)
  local refused = 0
  for _, thread in ipairs(threads) do refused = refused + thread:get("bad") end
  local e = summary.errors
  io.write(string.format(
    '\nRESULT {"requests": %d, "seconds": %.6f, "bad": %d, "p50": %d, "p99": %d, "max": %d}\n',
    summary.requests, summary.duration / 1e6, refused + e.connect + e.read + e.write + e.timeout,
    latency:percentile(50), latency:percentile(99), latency.max))
end
