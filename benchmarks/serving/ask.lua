-- wrk: POST the body of the file that BODY names, or GET if it names none, and report what was not a 200.
local name = os.getenv("BODY")
if name and name ~= "" then
    local file = io.open(name, "rb")
    wrk.method = "POST"
    wrk.body = file:read("*a")
    wrk.headers["Content-Type"] = name:match("%.arrow$") and "application/vnd.apache.arrow.stream" or "application/json"
    file:close()
end

local authorization = os.getenv("AUTHORIZATION")
if authorization and authorization ~= "" then
    wrk.headers["Authorization"] = authorization
end

done = function(summary, latency, requests)
    local e = summary.errors
    io.write(string.format("RESULT %d %d %f %f %d\n", summary.requests, summary.duration,
        latency:percentile(50), latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
