/* probe.h: asks every instance whether it is well: a heartbeat and a question that touches data, on
 * connections of its own, and one question for each collection that was found broken. */
#ifndef PROBE_H
#define PROBE_H

#include "fleet.h"
#include <ev.h>

/* cfg is read at each use. Nodes that join are probed at once. */
void probe_start(const struct config *cfg);
void probe_reload(const struct config *cfg);
void probe_stop(void);

#endif
