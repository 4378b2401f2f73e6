/* api_usage.h: what processes use, for our own Lua: local usage = require("chromux.usage").
 *
 *   usage.self                 the process's own pid
 *   usage.of(pid) -> {at=, started=, cpu_seconds=, rss=, private=, open_files=, max_files=,
 *       memory_used=, memory_limit=, limited=, cores=} | nil, why
 *       bytes and seconds, as of struct usage (usage.h); what is not known is left out
 *   usage.find{name, …} -> {[name]=pid}, {[name]=why}      of instances, by where they listen; why:
 *       unresolved, elsewhere (another host's address), silent (nobody listens there),
 *       denied (who does may not be looked into), unknown (no such instance)
 *   usage.folder(pid) -> path, path as the process calls it | nil       a Chroma server's data
 *   usage.disk(path) -> total, used, free, percent used | nil, why
 *   usage.tree(path) -> tree | nil, why
 *       tree:step(entries) -> nil, or when all were seen: bytes, bytes of databases, entries
 *   usage.nodes() -> {{name=, url=, health=, probe_ms=, last_check=, last_error=, active=, queued=,
 *       requests=, failures=, errors=, latency={count, …}}, …}
 *       instances, as this process has them; last_check: unix time, 0 before the first
 *   usage.quantiles(latency, before or nil, q, …) -> seconds, …      of what came since; nil:
 * nothing
 */
#ifndef API_USAGE_H
#define API_USAGE_H

#include "api.h"

/* Makes require("chromux.usage") answer on this VM. */
void api_usage_open(lua_State *L);

#endif
