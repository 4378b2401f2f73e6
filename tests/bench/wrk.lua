-- What wrk runs at its end: one line that run.sh reads. It defines no request or response function,
-- so wrk stays in C while it measures.
-- luacheck: globals done
function done(summary, latency)
  local e = summary.errors
  print(string.format("BENCH %d %d %d %d %d", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
