/* api_courier.h: the courier for our own Lua: local courier = require("chromux.courier"). What it
 * offers is written down in lua/lb/courier.lua. */
#ifndef API_COURIER_H
#define API_COURIER_H

#include "api.h"

/* Makes require("chromux.courier") answer on the VM of api_start(). */
void api_courier_open(void);
/* Closes every call; before courier_stop() and api_stop(). Fine when not open. */
void api_courier_stop(void);

#endif
