/* access.h: the access log: one line a request, buffered, never waiting for the disk's reader. */
#ifndef ACCESS_H
#define ACCESS_H

#include "buf.h"
#include "end.h"
#include <ev.h>

/* Everything a line tells. Times are loop times in seconds; 0: never got there. */
struct access_record {
    struct str client, method, path, action, id, instance;
    const char *class_name;
    int status;
    unsigned attempts;
    bool reused;                  /* the last try went over a kept connection */
    uint64_t bytes_in, bytes_out; /* bodies */
    double start;                 /* first byte of the request */
    double head;                  /* its head was complete */
    double queued;                /* seconds waited for a slot, over all tries */
    double connected;             /* the last try: since when it had a connection, */
    double picked;                /* since when it had a slot, */
    double first;                 /* and when the first byte of the answer came */
    double end;
    enum end_reason reason;
    const char *detail; /* why the policy chose or what went wrong; "" */
};

/* target: "off", "-" or a path. false: it can't be opened, errno. json chooses the format. */
bool access_start(struct ev_loop *loop, const char *target, bool json) MUST_CHECK;
void access_set_json(bool json);
bool access_on(void);
void access_log(const struct access_record *r);
/* USR1: opens the path anew; the old file stays when that fails. */
void access_reopen(void);
void access_stop(void); /* writes what is left */

#endif
