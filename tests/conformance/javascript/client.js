// Calls a server with @grpc/grpc-js, a gRPC stack of its own: `node client.js SCENARIO '{"target": ..., ...}'`.
//
// Each scenario checks what it gets and returns a few figures, printed as one JSON object; what is wrong throws.
'use strict';

const assert = require('node:assert');
const crypto = require('node:crypto');
const fs = require('node:fs');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const [scenario, text] = process.argv.slice(2);
const config = JSON.parse(text);

function service(file, path, options = {}) {
  const definition = loader.loadSync(file, {keepCase: true, longs: Number, defaults: true, includeDirs: [config.protos]});
  const Client = path.split('.').reduce((at, name) => at[name], grpc.loadPackageDefinition(definition));
  const trust = config.ca ? grpc.credentials.createSsl(fs.readFileSync(config.ca)) : grpc.credentials.createInsecure();
  return new Client(config.target, trust, {
    'grpc.max_receive_message_length': -1, 'grpc.max_send_message_length': -1, ...options,
  });
}

const inference = (options) => service('inference/grpc_service.proto', 'inference.GRPCInferenceService', options);

function request(model, values, columns, id = '') {
  const raw = Buffer.from(values.buffer, values.byteOffset, values.byteLength);
  return {
    model_name: model, id,
    inputs: [{name: 'x', datatype: 'FP32', shape: [values.length / columns, columns]}],
    raw_input_contents: [raw],
  };
}

function slowRequest() {  // of a model that never ends by itself
  const message = request('slow', random(1), 1);
  message.inputs[0].shape = [1];
  return message;
}

function random(count) {
  const values = new Float32Array(count);
  for (let i = 0; i < count; i++) values[i] = Math.fround(Math.random() - 0.5);
  return values;
}

function floats(response) {
  const raw = Buffer.from(response.raw_output_contents[0]);  // a copy: aligned
  return new Float32Array(raw.buffer.slice(raw.byteOffset, raw.byteOffset + raw.length));
}

// A unary call as a promise of {response, trailers, error}.
function call(client, method, message, {metadata = new grpc.Metadata(), deadlineMs = 60000, cancelMs = null} = {}) {
  return new Promise((resolve) => {
    let response, error;
    const deadline = Date.now() + deadlineMs;
    const made = client[method](message, metadata, {deadline}, (e, r) => { error = e; response = r; });
    made.on('status', (status) => setImmediate(() => resolve({response, error, trailers: status.metadata.getMap()})));
    if (cancelMs !== null) setTimeout(() => made.cancel(), cancelMs);
  });
}

async function double(client, rows = 1, id = '', options = {}) {
  const values = random(4 * rows);
  const {response, error, trailers} = await call(client, 'ModelInfer', request('double', values, 4, id), options);
  assert.ifError(error);
  assert.strictEqual(response.id, id);
  assert.deepStrictEqual(Array.from(floats(response)), Array.from(values, (v) => 2 * v));
  return trailers;
}

async function many(client, count, inFlight) {
  let next = 0;
  const worker = async () => { while (next < count) { const n = next++; await double(client, 1 + n % 8, `id-${n}`); } };
  await Promise.all(Array.from({length: inFlight}, worker));
  return {calls: count};
}

function asIs(client, count) {
  const values = random(count);
  return call(client, 'ModelInfer', request('identity', values, 4)).then(({response, error}) => {
    assert.ifError(error);
    assert.ok(Buffer.from(values.buffer).equals(response.raw_output_contents[0]));
    return values.byteLength;
  });
}

const scenarios = {
  unary: () => many(inference(), 2000, 64),

  compressed: () => many(inference({'grpc.default_compression_algorithm': 2}), 200, 16),

  async large() {
    const client = inference();
    const bytes = [150528, 150528, 1600000].map((count) => asIs(client, count));  // 602 kB twice, 6.4 MB; at once
    return {bytes: await Promise.all(bytes)};
  },

  async large_compressed() {
    return {bytes: await asIs(inference({'grpc.default_compression_algorithm': 2}), 150528)};
  },

  async stream() {
    const client = inference();
    const stream = client.ModelStreamInfer();
    const answers = [];
    const ended = new Promise((resolve, reject) => {
      stream.on('data', (answer) => answers.push(answer)).on('end', resolve).on('error', reject);
    });
    for (let n = 0; n < 200; n++)
      stream.write(request(n === 100 ? 'absent' : 'double', Float32Array.of(n, 1, 2, 3), 4, `${n}`));
    stream.end();
    await ended;
    assert.strictEqual(answers.length, 200);
    answers.forEach((answer, n) => {
      if (n === 100) {
        assert.match(answer.error_message, /Request for unknown model: 'absent' is not found/);
        return;
      }
      assert.strictEqual(answer.infer_response.id, `${n}`);
      assert.strictEqual(floats(answer.infer_response)[0], 2 * n);
    });
    return {answers: answers.length};
  },

  async stream_with_large_messages() {
    const stream = inference().ModelStreamInfer();
    const values = random(400000);  // 1.6 MB
    let got = 0;
    const ended = new Promise((resolve, reject) => {
      stream.on('data', (answer) => {
        assert.ok(Buffer.from(values.buffer).equals(answer.infer_response.raw_output_contents[0]));
        got++;
      }).on('end', resolve).on('error', reject);
    });
    for (let n = 0; n < 5; n++) stream.write(request('identity', values, 4));
    stream.end();
    await ended;
    assert.strictEqual(got, 5);
    return {answers: got};
  },

  async deadline() {
    const client = inference();
    const slow = Array.from({length: 4}, () => call(client, 'ModelInfer', slowRequest(), {deadlineMs: 300}));
    for (const {error} of await Promise.all(slow)) assert.strictEqual(error.code, grpc.status.DEADLINE_EXCEEDED);
    await double(client);
    return {};
  },

  async cancellation() {
    const client = inference();
    const slow = slowRequest();
    const cancelled = Array.from({length: 50}, (_, n) => call(client, 'ModelInfer', slow, {cancelMs: n}));
    for (const {error} of await Promise.all(cancelled)) assert.strictEqual(error.code, grpc.status.CANCELLED);
    const stream = client.ModelStreamInfer();
    const ended = new Promise((resolve) => stream.on('error', resolve));
    stream.on('data', () => stream.cancel());
    stream.write(request('double', random(4), 4));
    assert.strictEqual((await ended).code, grpc.status.CANCELLED);
    return many(client, 100, 10);
  },

  async error_text() {
    const {error} = await call(inference(), 'ModelInfer', request("50 % größer\n'", random(4), 4));
    assert.strictEqual(error.code, grpc.status.NOT_FOUND);
    return {details: error.details};
  },

  async unimplemented() {
    const path = '/inference.GRPCInferenceService/CudaSharedMemoryStatus';
    const same = (bytes) => bytes;
    const error = await new Promise((resolve) => inference().makeUnaryRequest(path, same, same, Buffer.alloc(0), resolve));
    assert.strictEqual(error.code, grpc.status.UNIMPLEMENTED);
    return {details: error.details};
  },

  async trace() {
    const metadata = new grpc.Metadata();
    const trace = `00-${crypto.randomBytes(16).toString('hex')}-${crypto.randomBytes(8).toString('hex')}-01`;
    metadata.set('traceparent', trace);
    assert.strictEqual((await double(inference(), 1, 'a', {metadata})).traceparent, trace);
    return {};
  },

  async metadata() {  // whatever a program adds, and binary values
    const metadata = new grpc.Metadata();
    for (let n = 0; n < 40; n++) metadata.set(`x-field-${n}`, 'v'.repeat(n));
    metadata.set('x-some-bin', crypto.randomBytes(300));
    const client = inference();
    for (let n = 0; n < 20; n++) await double(client, 1, `${n}`, {metadata});
    return {};
  },

  async keepalive() {  // a ping every 20 ms, also without calls: gRPC clients slow down when they are told too_many_pings
    const client = inference({'grpc.keepalive_time_ms': 20, 'grpc.keepalive_permit_without_calls': 1});
    for (let n = 0; n < 20; n++) {
      await double(client);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    return {};
  },

  async health() {
    const client = service('grpc_standard/health.proto', 'grpc.health.v1.Health');
    const {response, error} = await call(client, 'Check', {service: ''});
    assert.ifError(error);
    const watch = client.Watch({service: 'inference.GRPCInferenceService'});
    const first = await new Promise((resolve) => watch.on('data', resolve).on('error', () => {}));
    watch.cancel();
    return {check: response.status, watch: first.status};
  },

  async reflection() {
    const client = service('grpc_standard/reflection_v1.proto', 'grpc.reflection.v1.ServerReflection');
    const stream = client.ServerReflectionInfo();
    const answer = new Promise((resolve, reject) => stream.on('data', resolve).on('error', reject));
    stream.write({list_services: '*'});
    const {list_services_response: list} = await answer;
    stream.end();
    return {services: list.service.map((one) => one.name)};
  },

  async explicit_contents() {  // tensors as numbers in the message, not as bytes
    const message = request('double', random(4), 4);
    delete message.raw_input_contents;
    message.inputs[0].contents = {fp32_contents: [1, 2, 3, 4]};
    const {response, error} = await call(inference(), 'ModelInfer', message);
    assert.ifError(error);
    assert.deepStrictEqual(Array.from(floats(response)), [2, 4, 6, 8]);
    return {};
  },
};

scenarios[scenario]().then(
  (figures) => { console.log(JSON.stringify(figures)); process.exit(0); },
  (error) => { console.error(error); process.exit(1); },
);
