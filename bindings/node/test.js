'use strict';
// Runs under Node and Bun. As PID 1 of a PID namespace of its own it is the daemon under test; else it makes that
// namespace, and checks what needs none.

const assert = require('node:assert');
const { execFileSync, spawn } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');
const { Process, sweep, verify } = require('./index.js');

const COUNT = Number(process.env.SEXTON_TEST_COUNT ?? 1000);
const BURST = 50;

const later = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function eventually(what, holds) {
    const end = Date.now() + 30_000;
    while (!(await holds())) {
        assert(Date.now() < end, `never: ${what}`);
        await later(10);
    }
}

/** Resolves with code and signal once `exit` was emitted. */
function exitOf(program, args) {
    return new Promise((resolve, reject) => {
        const child = spawn(program, args, { stdio: 'ignore' });
        child.on('exit', (code, signal) => resolve({ pid: child.pid, code, signal }));
        child.on('error', reject);
    });
}

function defunct() {
    const stats = fs.readdirSync('/proc').filter((name) => /^\d+$/.test(name)).map((name) => {
        try { return fs.readFileSync(`/proc/${name}/stat`, 'latin1'); } catch { return ''; }
    });
    return stats.filter((stat) => stat.slice(stat.lastIndexOf(')') + 2).startsWith('Z'));
}

function block(ms) {
    const end = Date.now() + ms;
    while (Date.now() < end) { /* A loop that is too busy to reap. */ }
}

async function asInit() {
    const reaped = [];
    const sweeping = sweep({
        enabled: true, interval: '20ms', grace: 0,
        onReport: (report) => reaped.push(...report.reaped),
    });
    assert.strictEqual(sweeping.status().active, true, JSON.stringify(sweeping.status()));
    let expected = 0;
    for (let from = 0; from < COUNT; from += BURST) {
        const burst = Array.from({ length: BURST }, async (_, i) => {
            const code = (from + i) % 256;
            // The shell ends with its code and leaves an orphan that ends a little later.
            const exit = await exitOf('sh', ['-c', `(sleep 0.0${i % 10}) & exit ${code}`]);
            assert.deepStrictEqual([exit.code, exit.signal], [code, null]);
        });
        expected += BURST;
        // Zombies of our own lie about for many intervals and graces: both timers and pollers are late.
        if (from % (BURST * 5) === 0) setTimeout(() => { block(150); setTimeout(() => block(100), 0); }, 1);
        await Promise.all(burst);
    }
    await eventually('every orphan is reaped', () => reaped.length >= expected);
    await eventually('nothing is <defunct>', () => defunct().length === 0);
    assert.strictEqual(sweeping.status().reaped, reaped.length);
    assert(reaped.every((zombie) => zombie.code === 0 && ['sleep', 'sh'].includes(zombie.name)), JSON.stringify(reaped[0]));
    sweeping.stop();
    assert.strictEqual(sweeping.status().reason, 'stopped');
    console.log(`${COUNT} exit events and ${reaped.length} orphans`);
}

function badOptionsAreWarnedOf() {
    const lines = [];
    const log = (line) => lines.push(line);
    for (const options of [undefined, null, 7, 'on', [], { enabled: 'perhaps', log }, { enabled: false, interval: -1, log },
        { interval: NaN, log }, { grace: {}, log }, { interval: '5 minutes', log }, { onReport: 3, log }]) {
        assert.strictEqual(sweep(options).status().active, false);
    }
    assert.strictEqual(sweep({ log: () => { throw new Error('no'); }, enabled: 'x' }).status().active, false);
    assert.strictEqual(lines.length, 5, lines.join('\n'));
    assert.strictEqual(sweep({ enabled: true }).status().reason, 'neither PID 1 nor a subreaper: orphans go elsewhere');
}

async function identitiesAreProven() {
    const child = spawn('sleep', ['1000'], { stdio: 'ignore' });
    const exit = new Promise((resolve) => child.on('exit', (code, signal) => resolve(signal)));
    const identity = Process.open(child.pid).identity;
    assert.strictEqual(verify(identity), 'running');
    const held = Process.reopen(identity);
    assert.strictEqual(held.identity, identity);
    assert.throws(() => held.signal('SIGNOSUCH'), { code: 'BAD_ARGUMENT' });
    assert.strictEqual(held.signal('SIGKILL'), true);
    assert.strictEqual(await exit, 'SIGKILL');
    assert.strictEqual(held.signal('SIGKILL'), false);
    assert.strictEqual(verify(identity), 'gone');
    assert.throws(() => Process.reopen(identity), { code: 'GONE' });
    for (const pid of [0, 1, -1, 4294967298, 2.5, '77', null]) {
        assert.throws(() => Process.open(pid), { code: 'BAD_ARGUMENT' }, String(pid));
    }
}

/** The README's program, as a program. */
function theReadmeRuns() {
    const readme = fs.readFileSync(path.join(__dirname, 'README.md'), 'utf8');
    const code = readme.split('```js\n')[1].split('```')[0].replace('@sexton/node', __dirname);
    const output = execFileSync(process.execPath, ['-e', code], { encoding: 'utf8', timeout: 20_000 });
    assert.strictEqual(output, 'running true\nSIGTERM gone\n');
}

async function main() {
    if (process.pid === 1) return asInit();
    badOptionsAreWarnedOf();
    await identitiesAreProven();
    theReadmeRuns();
    execFileSync('unshare', ['--pid', '--fork', '--mount-proc', process.execPath, __filename], { stdio: 'inherit' });
    console.log(`${path.basename(process.execPath)}: all is well`);
}

main().catch((error) => {
    console.error(error);
    process.exit(1);
});
