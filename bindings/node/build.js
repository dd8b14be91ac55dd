'use strict';
// Builds the addon for this machine: the Rust library with the profile that unwinds, and the shim around it.

const { execFileSync } = require('node:child_process');
const { existsSync, mkdirSync } = require('node:fs');
const path = require('node:path');

const repository = path.join(__dirname, '..', '..');
const run = (program, ...args) => execFileSync(program, args, { cwd: repository, stdio: 'inherit' });
const target = process.env.CARGO_TARGET_DIR ?? path.join(repository, 'target');
const includes = [path.join(process.execPath, '..', '..', 'include', 'node'), '/usr/include/node'];
const include = includes.find((dir) => existsSync(path.join(dir, 'node_api.h')));
if (!include) throw new Error(`no node_api.h in ${includes.join(' or ')}`);

run(process.env.CARGO ?? 'cargo', 'build', '--profile', 'ffi', '-p', 'sexton-ffi');
const out = path.join(__dirname, 'prebuilds', `${process.platform}-${process.arch}`);
mkdirSync(out, { recursive: true });
run(process.env.CC ?? 'cc', '-std=c11', '-O2', '-Wall', '-Wextra', '-Werror', '-fPIC', '-shared', '-fvisibility=hidden',
    '-s', '-Wl,--gc-sections', '-Wl,--exclude-libs,ALL', `-I${include}`, '-Ibindings/c', '-o', path.join(out, 'sexton.node'),
    path.join(__dirname, 'addon.c'), path.join(target, 'ffi', 'libsexton_ffi.a'), '-lpthread', '-ldl', '-lm');
