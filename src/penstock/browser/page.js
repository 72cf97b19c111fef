// Runs an ONNX model with ONNX Runtime Web at the orders of the process that serves this page.
// Frames are those of penstock/frames.py.

const ALIGN = 8;
const MOST_LINES = 50000;
const CONSTRUCTORS = {
  float32: Float32Array, float64: Float64Array, uint8: Uint8Array, int8: Int8Array, uint16: Uint16Array,
  int16: Int16Array, int32: Int32Array, uint32: Uint32Array, int64: BigInt64Array, uint64: BigUint64Array,
  bool: Uint8Array, float16: globalThis.Float16Array ?? Uint16Array,
};
const padded = (length) => Math.ceil(length / ALIGN) * ALIGN;

// ---- frames

function decode(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let place = padded(4 + length);
  const tensors = head.arrays.map(({ shape, texts, dtype, bytes }) => {
    if (texts) return () => new ort.Tensor('string', texts, shape);
    const data = buffer.slice(place, place + bytes);
    place += padded(bytes);
    return () => {
      if (!CONSTRUCTORS[dtype]) throw new Error(`JavaScript has no tensor of ${dtype}`);
      return new ort.Tensor(dtype, new CONSTRUCTORS[dtype](data), shape);
    };
  });
  return [head.told, tensors];
}

function encode(told, tensors = []) {
  const arrays = [], pieces = [];
  for (const { type, dims, data } of tensors) {
    if (type === 'string') {
      arrays.push({ shape: dims, texts: data });
      continue;
    }
    if (!CONSTRUCTORS[type]) throw new Error(`an output of the type ${type} can't be handed over`);
    arrays.push({ shape: dims, dtype: type, bytes: data.byteLength });
    pieces.push(data, new Uint8Array(padded(data.byteLength) - data.byteLength));
  }
  const head = new TextEncoder().encode(JSON.stringify({ told, arrays }));
  const length = new DataView(new ArrayBuffer(4));
  length.setUint32(0, head.length, true);
  return new Blob([length, head, new Uint8Array(padded(4 + head.length) - 4 - head.length), ...pieces]);
}

// ---- what went wrong, and what ONNX Runtime prints

const describe = (error) => ({ name: error?.name ?? typeof error, message: String(error?.message ?? error) });
const report = (error) => fetch('stray', { method: 'POST', body: encode(describe(error)), keepalive: true }).catch(() => {});
addEventListener('error', (event) => report(event.error ?? event.message));
addEventListener('unhandledrejection', (event) => report(event.reason));

const lines = []; // taken along with each answer
for (const level of ['log', 'info', 'warn', 'error', 'debug']) {
  console[level] = (...args) => lines.length < MOST_LINES && lines.push(args.map(String).join(' '));
}

// ---- commands

let ort, session, script;

const fed = (names, tensors) => Object.fromEntries(names.map((name, at) => [name, tensors[at]()]));

async function create({ external, options }, logSeverityLevel) {
  const model = new Uint8Array(await (await fetch('model')).arrayBuffer());
  const externalData = external.map(({ path, url }) => ({ path, data: new URL(url, location.href).href }));
  return ort.InferenceSession.create(model, { ...options, logSeverityLevel, externalData });
}

const commands = {
  async setup(asked) {
    script = new URL(asked.script, location.href).href;
    ort = await import(script);
    ort.env.wasm.numThreads = asked.threads;
    return { version: ort.env.versions.web, isolated: crossOriginIsolated };
  },

  async adapter() {
    const adapter = await navigator.gpu?.requestAdapter();
    if (!adapter) return null;
    const { vendor, architecture, device, description, isFallbackAdapter } = adapter.info;
    return { vendor, architecture, device, description, software: isFallbackAdapter };
  },

  async load(asked) {
    session = await create(asked, 3);
    const device = await ort.env.webgpu?.device;
    device?.lost.then(({ reason, message }) => reason === 'destroyed' || report(`the GPU was lost: ${message}`));
    const workers = performance.getEntriesByType('resource')
      .filter((entry) => entry.name === script && ['other', 'worker'].includes(entry.initiatorType)).length;
    return { threads: ort.env.wasm.numThreads, isolated: crossOriginIsolated, workers };
  },

  // a session that tells all when it is made would also tell of each run
  async placement(asked) {
    await (await create(asked, 0)).release();
    return null;
  },

  async profile({ external, options, names, calls }, tensors) {
    const held = await create({ external, options: { ...options, enableProfiling: true } }, 3);
    try {
      const feeds = fed(names, tensors);
      for (let call = 0; call < calls; call++) await held.run(feeds);
    } finally {
      held.endProfiling();
      await held.release();
    }
    return null;
  },

  async release() {
    await session?.release();
    session = undefined;
    return null;
  },

  async run({ names }, tensors) {
    const outputs = await session.run(fed(names, tensors));
    return [null, session.outputNames.map((name) => outputs[name])];
  },

  async time({ names, calls }, tensors) {
    const feeds = fed(names, tensors);
    const spent = [];
    for (let call = 0; call < calls; call++) {
      const began = performance.now();
      await session.run(feeds);
      spent.push(performance.now() - began);
    }
    return spent;
  },
};

// ---- the conversation: ask for a command, answer it, ask again

// left open: the server sees it fall shut the moment this process dies
fetch('alive').catch(() => {});

for (;;) {
  let frame;
  try {
    frame = await (await fetch('next')).arrayBuffer();
  } catch {
    close(); // the server is gone
    break;
  }
  if (!frame.byteLength) continue;
  const [asked, tensors] = decode(frame);
  let body;
  try {
    const found = await commands[asked.do](asked, tensors);
    const [result, outputs] = asked.do === 'run' ? found : [found, []];
    body = encode({ id: asked.id, result, log: lines.splice(0) }, outputs);
  } catch (error) {
    body = encode({ id: asked.id, error: describe(error), log: lines.splice(0) });
  }
  await fetch('result', { method: 'POST', body });
}
