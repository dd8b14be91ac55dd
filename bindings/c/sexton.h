/* Sexton: custody of processes. The C ABI of the Rust library `sexton-core`.
 *
 * Functions may be called from any thread unless they say otherwise, block only where they say so, never throw and
 * never call exit. What is not Linux, or not allowed, is answered and never fatal. Nothing here may be called in a
 * signal handler, or between fork and exec; a forked child leaves its parent's things alone.
 */
#ifndef SEXTON_H
#define SEXTON_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    SEXTON_OK = 0,
    SEXTON_GONE = -1,          /* no such process, or no longer that one */
    SEXTON_NOT_A_CHILD = -2,   /* only a parent can reap */
    SEXTON_UNPROVEN = -3,      /* a process of that number may or may not be it: hands off */
    SEXTON_UNSUPPORTED = -4,   /* this system or build cannot */
    SEXTON_STOPPED = -5,
    SEXTON_BAD_ARGUMENT = -6,
    SEXTON_FAILED = -7,        /* the kernel refused; sexton_error() says what */
    SEXTON_PANICKED = -8,      /* a defect of the library */
    SEXTON_NOTHING_YET = -9,
    SEXTON_TOO_SMALL = -10,    /* the buffer; sexton_error() says how much is needed */
    SEXTON_DRAINING = -11      /* the gate is closed */
};

const char *sexton_version(void);

/* What the last refusal on this thread was about; valid until the next one. */
const char *sexton_error(void);

/* The library's log: level 1 error, 2 warning, 3 information. NULL sends it to stderr, where it goes at first. */
typedef void (*sexton_on_log)(int level, const char *line, void *user);
void sexton_log(sexton_on_log on_log, void *user);

/* ---- Processes by identity ---------------------------------------------------------------------------------- */

typedef struct sexton_process sexton_process;

/* Holds whatever process has this number now; afterwards the number does not matter any more. */
int sexton_open(int32_t pid, sexton_process **out);

/* Writes its identity, a text of less than 256 bytes to be kept in a file or a database. */
int sexton_identity(const sexton_process *process, char *buffer, size_t room);

/* Holds exactly the process of that identity: SEXTON_GONE is proven, SEXTON_UNPROVEN is not. */
int sexton_reopen(const char *identity, sexton_process **out);

/* SEXTON_OK where that process is there and has not ended. */
int sexton_verify(const char *identity);

/* Signals this process and never another; SEXTON_GONE once it has been reaped. */
int sexton_signal(const sexton_process *process, int signal);

/* Its pidfd, which becomes readable when it ends; stays the library's. Below 0: refused. */
int sexton_pidfd(const sexton_process *process);

/* Lets go of it. */
void sexton_close(sexton_process *process);

/* ---- The reaper: collects the exits of registered children, and of no others ---------------------------------- */

typedef struct sexton_reaper sexton_reaper;

typedef struct sexton_exit {
    int32_t pid;      /* may name another process by now */
    int32_t code;     /* 0 to 255; -1 where a signal ended it, or nobody knows */
    int32_t signal;   /* 1 to 64; 0 where it exited, or nobody knows */
    int32_t vanished; /* 1 where another owner reaped it */
} sexton_exit;

typedef struct sexton_reaper_stats {
    uint64_t registered;       /* now */
    uint64_t polled;           /* of these, by number every 250 ms, for want of a pidfd */
    uint64_t held;             /* of these, ended and held by a tracer or another owner */
    uint64_t reaped;
    uint64_t vanished;
    uint64_t sweeps;           /* wake-ups of its thread */
    uint64_t last_sweep_ms;    /* since 1970; 0 before the first */
    uint64_t restarts;         /* of its thread */
    uint64_t latency_total_us; /* from wake-up to status, all exits together */
    uint64_t latency_max_us;
    uint64_t alive;
} sexton_reaper_stats;

/* Called on the reaper's thread; other exits wait meanwhile. */
typedef void (*sexton_on_exit)(const sexton_exit *exit, void *user);

/* Without a callback, exits wait for sexton_reaper_take. */
int sexton_reaper_start(sexton_on_exit on_exit, void *user, sexton_reaper **out);

/* Takes over a child that nobody has reaped. There is no way back. Twice is once. */
int sexton_reaper_register(const sexton_reaper *reaper, int32_t pid);

/* The same by a held process, and so by its pidfd; it may be closed afterwards. */
int sexton_reaper_register_process(const sexton_reaper *reaper, const sexton_process *process);

/* The oldest exit that nobody has taken; blocks for timeout_ms at most, then SEXTON_NOTHING_YET. */
int sexton_reaper_take(const sexton_reaper *reaper, uint32_t timeout_ms, sexton_exit *out);

int sexton_reaper_read_stats(const sexton_reaper *reaper, sexton_reaper_stats *out);

/* Stops and frees it; what is registered stays unreaped. Blocks for the callback that is running. */
void sexton_reaper_stop(sexton_reaper *reaper);

/* ---- The sweep: zombies of processes that nobody here started, for PID 1 and subreapers ----------------------- */

typedef struct sexton_sweep_options {
    int64_t enabled;     /* 1 to sweep */
    int64_t interval_ms; /* 0: 1,000 */
    int64_t grace_ms;    /* -1: 1,000. A zombie is left to an owner for so long */
} sexton_sweep_options;

typedef struct sexton_zombie {
    int32_t pid;
    int32_t code;
    int32_t signal;
    const char *name; /* valid during the call */
} sexton_zombie;

typedef void (*sexton_on_zombie)(const sexton_zombie *zombie, void *user);

typedef struct sexton_sweep sexton_sweep;
typedef struct sexton_sweeper sexton_sweeper;

/* On a thread of its own. NULL options mean off; what makes no sense is warned of and replaced by the default. Where
 * there is nothing to sweep it logs why, once, and does nothing. `reaper` may be NULL. */
sexton_sweep *sexton_sweep_start(const sexton_sweep_options *options, const sexton_reaper *reaper,
                                 sexton_on_zombie on_zombie, void *user);

/* Have it look soon, as after SIGCHLD. */
void sexton_sweep_ring(const sexton_sweep *sweep);

/* Leaves this child to its owner, however long that takes. */
int sexton_sweep_spare(const sexton_sweep *sweep, int32_t pid);

/* {"active":true,"reason":null,"passes":3,"reaped":1,"waiting":0} */
int sexton_sweep_status(const sexton_sweep *sweep, char *buffer, size_t room);

void sexton_sweep_stop(sexton_sweep *sweep);

/* On the host's own thread: for an event loop that reaps its children on that thread too, so that one too busy to
 * reap is also too busy to sweep. One thread at a time. */
sexton_sweeper *sexton_sweeper_new(const sexton_sweep_options *options, const sexton_reaper *reaper);

/* One look; how many zombies it reaped, or below 0. Never blocks. */
int sexton_sweeper_pass(sexton_sweeper *sweeper, sexton_on_zombie on_zombie, void *user);

int sexton_sweeper_spare(sexton_sweeper *sweeper, int32_t pid);

int sexton_sweeper_status(const sexton_sweeper *sweeper, char *buffer, size_t room);

void sexton_sweeper_free(sexton_sweeper *sweeper);

/* ---- The gate: what is admitted before a drain finishes, and nothing is admitted afterwards ------------------- */

typedef struct sexton_gate sexton_gate;
typedef struct sexton_permit sexton_permit;

typedef struct sexton_inside {
    const char *kind; /* valid during the call */
    uint64_t age_ms;
} sexton_inside;

typedef void (*sexton_on_inside)(const sexton_inside *inside, void *user);
typedef void (*sexton_on_idle)(void *user);

/* Open, with nothing inside. */
sexton_gate *sexton_gate_new(void);

/* Admits one operation of that kind, a word such as "start" or "upload"; SEXTON_DRAINING once the gate is closed. */
int sexton_gate_enter(const sexton_gate *gate, const char *kind, sexton_permit **out);

/* The operation is over. */
void sexton_permit_leave(sexton_permit *permit);

/* Closes it, for good. When this returns, what was admitted is inside, and nothing is admitted any more. */
int sexton_gate_begin_drain(const sexton_gate *gate);

/* 1 or 0. Idle is closed and empty, and stays. */
int sexton_gate_is_draining(const sexton_gate *gate);
int sexton_gate_is_idle(const sexton_gate *gate);

/* Tells of each operation inside, the oldest first; how many there are, or below 0. */
int sexton_gate_in_flight(const sexton_gate *gate, sexton_on_inside on_inside, void *user);

/* Blocks until the gate is idle, or for timeout_ms at most, then SEXTON_NOTHING_YET. Below 0: for as long as it takes. */
int sexton_gate_wait_idle(const sexton_gate *gate, int64_t timeout_ms);

/* Calls back once, when the gate is idle: at once, or on the thread that leaves last. It must not block. */
int sexton_gate_when_idle(const sexton_gate *gate, sexton_on_idle on_idle, void *user);

/* Permits stay good. */
void sexton_gate_free(sexton_gate *gate);

#ifdef __cplusplus
}
#endif

#endif
