/* journal.h: the handler of requests that go through the journal: writes, and all of the catalogue.
 *
 * It collects the body, asks lua/lb/journal.lua and sends what that answers. What Lua is called
 * with, always from outside of tasks:
 *
 *   start(settings)   all settings but secrets by name, and instances = {{name=, url=, role=,
 *                     priority=, weight=}, …}; an error stops the start
 *   reload(settings)  the same, after a HUP; the fleet has changed already
 *   submit(request)   {ticket=, method=, action=, class=, reads=, tenant=, database=,
 *                     collection=, by_name=, target=, query=, type=, key=, token=, forwarded=,
 *                     id=, body=, deadline=, max_behind=}: texts as sent, but tenant, database
 *                     and collection decoded and a UUID in its canonical spelling; nil where
 *                     there is none. deadline: when REQUEST_TIMEOUT ends, by Lua's now()
 *   gone(ticket)      the client is gone, or was told 504: nobody waits for this answer
 *   look(logical)     a read of a collection that is not in the table waits (mapped.c):
 *                     answered by chromux.copies.looked(logical, sure)
 *   wanted(logical)   a read of a collection waits for a copy that may be read (proxy.c)
 *   lost({logical=, instance=, physical=})   a server says that its copy does not exist (proxy.c)
 *   status() -> table for lua/lb/status.lua
 *   metrics() -> {{name=, help=, type=, value=}, …}
 *   stop() -> true when everything is written; asked again until then
 *
 * What Lua may call, require("chromux.answer"); both return false when nobody waits any more. The
 * answer goes out when Lua has returned to the loop.
 *
 *   send(ticket, status, type, body, fields, instance)   fields: header lines, or nil;
 *                     instance: for X-Chromux-Instance, or nil
 *   refuse(ticket, reason, message, retry_after)   reason: an end reason with a status (end.h);
 *                     retry_after: seconds, or nil */
#ifndef JOURNAL_H
#define JOURNAL_H

#include "api.h"
#include "session.h"

extern const struct handler journal_handler;

/* Adds chromux.answer to the VM and starts the engine. cfg is read at each use. */
bool journal_start(const struct config *cfg, struct buf *error) MUST_CHECK;
void journal_reload(const struct config *cfg);
/* Tells the engine to stop; true when it has nothing left to write. Fine when not started. */
bool journal_finished(void);
/* Every session is gone. */
void journal_stop(void);

#endif
