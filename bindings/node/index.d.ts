/** A duration: milliseconds, or `250ms`, `5s`, `10m`, `1h`. */
export type Duration = number | string;

export interface Zombie {
    pid: number;
    name: string;
    code: number | null;
    signal: number | null;
}

export interface SweepOptions {
    /** Off unless true. */
    enabled?: boolean | string;
    /** Between two looks; 1 s. */
    interval?: Duration;
    /** How long a zombie is left to an owner; 1 s. */
    grace?: Duration;
    /** Whose registered children are left to it. */
    reaper?: Reaper;
    /** Called after each look that reaped something. */
    onReport?: (report: { count: number; reaped: Zombie[] }) => void;
    /** Where warnings go; `console.error`. */
    log?: (line: string) => void;
}

export interface SweepStatus {
    active: boolean;
    reason: string | null;
    passes: number;
    reaped: number;
    waiting: number;
}

export declare class Sweep {
    private constructor();
    status(): SweepStatus;
    stop(): void;
}

/** Starts reaping zombies of processes that this program did not start, or says once why not. Never throws. Does
 * nothing in a worker. */
export declare function sweep(options?: SweepOptions): Sweep;

/** The end of a registered child; both null where nobody can know. */
export interface Exit {
    /** May name another process by now. */
    pid: number;
    code: number | null;
    signal: number | null;
    /** Another owner reaped it. */
    vanished: boolean;
}

export interface ReaperOptions {
    /** Called for each exit, on the event loop. */
    onExit?: (exit: Exit) => void;
    /** Where warnings go; `console.error`. */
    log?: (line: string) => void;
}

export interface ReaperStats {
    registered: number;
    polled: number;
    held: number;
    reaped: number;
    vanished: number;
    sweeps: number;
    lastSweepMs: number;
    restarts: number;
    latencyTotalUs: number;
    latencyMaxUs: number;
    alive: boolean;
    /** Why there is none. */
    reason: string | null;
}

export declare class Reaper {
    private constructor();
    /** Takes over a child that nobody else waits for; throws `NOT_A_CHILD`, `GONE`, `STOPPED` or `UNSUPPORTED`. */
    register(child: number | Process): void;
    stats(): ReaperStats;
    stop(): void;
}

/** Starts a reaper of children that are registered. Never throws. */
export declare function reaper(options?: ReaperOptions): Reaper;

export declare class Permit {
    private constructor();
    /** The operation is over. Twice is once. */
    leave(): void;
}

/** Admits operations until it is drained, for good. */
export declare class Gate {
    constructor();
    /** A permit for one operation of that kind, a word such as `start` or `upload`; throws `DRAINING`. */
    enter(kind: string): Permit;
    /** Runs `work` inside, and leaves when it is over; rejects with `DRAINING`. */
    run<T>(kind: string, work: () => T | Promise<T>): Promise<T>;
    /** Closes it, and resolves once nothing is inside. */
    drain(): Promise<void>;
    readonly isDraining: boolean;
    /** Closed and empty, and so it stays. */
    readonly isIdle: boolean;
    /** The oldest first. */
    inFlight(): { kind: string; ageMs: number }[];
}

export declare class Process {
    private constructor();
    static open(pid: number): Process;
    static reopen(identity: string): Process;
    readonly identity: string;
    signal(signal?: NodeJS.Signals | number): boolean;
}

export declare function verify(identity: string): 'running' | 'gone' | 'unproven';
