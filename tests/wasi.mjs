// node tests/wasi.mjs PROGRAM ARGUMENTS...: runs a WebAssembly build; / is where one is, /tmp is /tmp.
import { readFileSync } from 'node:fs'
import { WASI } from 'node:wasi'

const [program, ...words] = process.argv.slice(2)
const wasi = new WASI({
    version: 'preview1', args: ['refsae', ...words], env: process.env, preopens: { '/': '.', '/tmp': '/tmp' },
})
const module = await WebAssembly.compile(readFileSync(program))
process.exitCode = wasi.start(await WebAssembly.instantiate(module, wasi.getImportObject()))
