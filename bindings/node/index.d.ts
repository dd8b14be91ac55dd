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

/** Starts reaping zombies of processes that this program did not start, or says once why not. Never throws. */
export declare function sweep(options?: SweepOptions): Sweep;

export declare class Process {
    private constructor();
    static open(pid: number): Process;
    static reopen(identity: string): Process;
    readonly identity: string;
    signal(signal?: NodeJS.Signals | number): boolean;
}

export declare function verify(identity: string): 'running' | 'gone' | 'unproven';
