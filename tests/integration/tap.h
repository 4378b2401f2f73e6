/* tap.h: a wire into which a test can look and cut: a TCP relay in front of a real server, with a
 * thread for each connection. It keeps what went to the server, can hold back requests or answers,
 * be slow, and turn answers into errors. */
#ifndef TAP_H
#define TAP_H

#include "harness.h"

struct tap;

struct tap *tap_start(unsigned to_port);    /* on a free port */
struct tap *tap_start_at(const char *path); /* in front of a Unix socket */
unsigned tap_port(const struct tap *t);
void tap_stop_all(void); /* the teardown's */

/* All bytes that went to the server so far, each connection's together, as text. */
char *tap_seen(struct tap *t);

/* From now on a piece of bytes to the server that holds `part` goes no further, nor what follows on
 * its connection, until the test says NULL. */
void tap_hold_requests(struct tap *t, const char *part);
/* The same for a connection's answers, once a request on it has held `part`: the server gets the
 * request, and its answer waits. */
void tap_hold_answers(struct tap *t, const char *part);
/* Connections on which something is held back now. */
unsigned tap_held(struct tap *t);
/* Each piece of bytes, either way, takes so much longer. */
void tap_delay(struct tap *t, double seconds);
/* Once a request on a connection has held `part`, the status of its answer is 500 and nothing else
 * is changed; NULL: no more. */
void tap_spoil_answers(struct tap *t, const char *part);

#endif
