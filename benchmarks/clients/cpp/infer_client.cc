// An inference client on gRPC's C core: N unary calls in flight, every status and answer checked, one line of JSON.
//
// The messages are made beforehand and sent as bytes (generic stub), so that no code is generated and the client costs
// as little as its library allows. README.md beside this file tells the options and what is printed.

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/support/byte_buffer.h>

namespace {

struct Options {
  std::string target, bodies, expected, ca, method = "/inference.GRPCInferenceService/ModelInfer";
  long requests = 1000, in_flight = 32, channels = 1, warm_up = 0, deadline_ms = 60000, keepalive_ms = 0;
  bool traceparent = false, gzip = false, gate = false;
};

[[noreturn]] void Refuse(const std::string& text) {
  std::cerr << "infer_client: " << text << std::endl;
  std::exit(2);
}

std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) Refuse("cannot read " + path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// A file of messages: each one is its length (4 bytes, little-endian) and its bytes.
std::vector<std::string> ReadMessages(const std::string& path) {
  const std::string data = ReadAll(path);
  std::vector<std::string> messages;
  for (size_t at = 0; at < data.size();) {
    if (data.size() - at < 4) Refuse(path + " ends inside a length");
    const auto* p = reinterpret_cast<const unsigned char*>(data.data()) + at;
    const size_t size = p[0] | p[1] << 8 | p[2] << 16 | static_cast<size_t>(p[3]) << 24;
    if (data.size() - at - 4 < size) Refuse(path + " ends inside a message");
    messages.emplace_back(data, at + 4, size);
    at += 4 + size;
  }
  if (messages.empty()) Refuse(path + " holds no message");
  return messages;
}

Options Parse(int argc, char** argv) {
  Options o;
  const std::map<std::string, std::string*> texts = {
      {"--target", &o.target}, {"--bodies", &o.bodies}, {"--expected", &o.expected},
      {"--ca", &o.ca},         {"--method", &o.method},
  };
  const std::map<std::string, long*> numbers = {
      {"--requests", &o.requests}, {"--in-flight", &o.in_flight},     {"--channels", &o.channels},
      {"--warm-up", &o.warm_up},   {"--deadline-ms", &o.deadline_ms}, {"--keepalive-ms", &o.keepalive_ms},
  };
  const std::map<std::string, bool*> flags = {
      {"--traceparent", &o.traceparent}, {"--gzip", &o.gzip}, {"--gate", &o.gate}};
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (auto flag = flags.find(name); flag != flags.end()) {
      *flag->second = true;
      continue;
    }
    if (i + 1 == argc) Refuse("no value for " + name);
    const std::string value = argv[++i];
    if (auto text = texts.find(name); text != texts.end()) {
      *text->second = value;
    } else if (auto number = numbers.find(name); number != numbers.end()) {
      *number->second = std::stol(value);
    } else {
      Refuse("unknown option " + name);
    }
  }
  if (o.target.empty() || o.bodies.empty()) Refuse("--target HOST:PORT and --bodies FILE are needed");
  if (o.requests < 1 || o.in_flight < 1 || o.channels < 1) Refuse("--requests, --in-flight, --channels: at least 1");
  return o;
}

double CpuSeconds() {
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  return used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

bool Equals(const grpc::ByteBuffer& got, const std::string& expected) {
  if (got.Length() != expected.size()) return false;
  std::vector<grpc::Slice> slices;
  if (!got.Dump(&slices).ok()) return false;
  size_t at = 0;
  for (const auto& slice : slices) {
    if (std::memcmp(slice.begin(), expected.data() + at, slice.size()) != 0) return false;
    at += slice.size();
  }
  return true;
}

std::string Json(const std::string& text) {
  std::string out = "\"";
  for (const unsigned char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (c >= 0x20) out += static_cast<char>(c);
  }
  return out + '"';
}

struct Call {
  std::unique_ptr<grpc::ClientContext> context;
  std::unique_ptr<grpc::GenericClientAsyncResponseReader> reader;
  grpc::ByteBuffer answer;
  grpc::Status status;
  std::chrono::steady_clock::time_point started;
  size_t message = 0;
  long channel = 0;
};

struct Tally {
  long errors = 0, wrong = 0;
  std::map<std::string, long> statuses;
  std::string first_error;
  std::vector<double> latencies_us;
};

class Client {
 public:
  explicit Client(const Options& options) : options_(options) {
    for (const auto& body : ReadMessages(options.bodies)) {
      const grpc::Slice slice(body);
      messages_.emplace_back(&slice, 1);
    }
    if (!options.expected.empty()) expected_ = ReadMessages(options.expected);
    if (!expected_.empty() && expected_.size() != messages_.size())
      Refuse("--expected must hold as many messages as --bodies");
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    if (options.gzip) arguments.SetCompressionAlgorithm(GRPC_COMPRESS_GZIP);
    if (options.keepalive_ms > 0) {
      arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, static_cast<int>(options.keepalive_ms));
      arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
      arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
    }
    std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
    if (!options.ca.empty()) {
      grpc::SslCredentialsOptions trust;
      trust.pem_root_certs = ReadAll(options.ca);
      credentials = grpc::SslCredentials(trust);
    }
    for (long i = 0; i < options.channels; ++i) {
      arguments.SetInt("holdfast.channel", static_cast<int>(i));  // else equal channels share one connection
      stubs_.emplace_back(std::make_unique<grpc::GenericStub>(
          grpc::CreateCustomChannel(options.target, credentials, arguments)));
    }
  }

  // Sends `count` calls and waits for their ends.
  Tally Run(long count) {
    Tally tally;
    tally.latencies_us.reserve(count);
    std::vector<Call> calls(std::min(options_.in_flight, count));
    long sent = 0;
    for (auto& call : calls) {
      call.channel = sent % options_.channels;
      Begin(&call, sent++);
    }
    for (long ended = 0; ended < count; ++ended) {
      void* tag = nullptr;
      bool ok = false;
      if (!queue_.Next(&tag, &ok)) Refuse("the queue ended early");
      auto* call = static_cast<Call*>(tag);
      End(*call, &tally);
      if (sent < count) Begin(call, sent++);
    }
    return tally;
  }

 private:
  void Begin(Call* call, long number) {
    call->message = number % messages_.size();
    call->reader.reset();  // before its context, whose arena it lies in
    call->context = std::make_unique<grpc::ClientContext>();
    call->context->set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(options_.deadline_ms));
    if (options_.traceparent) call->context->AddMetadata("traceparent", TraceParent());
    call->answer.Clear();
    call->started = std::chrono::steady_clock::now();
    call->reader = stubs_[call->channel]->PrepareUnaryCall(call->context.get(), options_.method,
                                                           messages_[call->message], &queue_);
    call->reader->StartCall();
    call->reader->Finish(&call->answer, &call->status, call);
  }

  void End(const Call& call, Tally* tally) {
    const auto took = std::chrono::steady_clock::now() - call.started;
    tally->latencies_us.push_back(std::chrono::duration<double, std::micro>(took).count());
    if (!call.status.ok()) {
      ++tally->errors;
      ++tally->statuses[std::to_string(call.status.error_code())];
      if (tally->first_error.empty()) tally->first_error = call.status.error_message();
    } else if (expected_.empty() ? call.answer.Length() == 0 : !Equals(call.answer, expected_[call.message])) {
      ++tally->errors;
      ++tally->wrong;
      if (tally->first_error.empty())
        tally->first_error = "wrong answer to message " + std::to_string(call.message);
    }
  }

  std::string TraceParent() {
    char text[56];
    std::snprintf(text, sizeof text, "00-%016llx%016llx-%016llx-01", Random(), Random(), Random());
    return text;
  }

  unsigned long long Random() { return random_() | 1; }  // an id of zeros is none

  const Options& options_;
  std::vector<grpc::ByteBuffer> messages_;
  std::vector<std::string> expected_;
  std::vector<std::unique_ptr<grpc::GenericStub>> stubs_;
  grpc::CompletionQueue queue_;
  std::mt19937_64 random_{7};
};

void Print(const Options& options, Tally* tally, double wall_s, double cpu_s) {
  auto& latencies = tally->latencies_us;
  std::sort(latencies.begin(), latencies.end());
  const auto at = [&](double share) { return latencies[static_cast<size_t>(share * (latencies.size() - 1))]; };
  std::ostringstream statuses;
  for (const auto& [code, count] : tally->statuses)
    statuses << (statuses.tellp() ? ", " : "") << Json(code) << ": " << count;
  std::cout << "{\"requests\": " << options.requests << ", \"errors\": " << tally->errors
            << ", \"wrong_answers\": " << tally->wrong << ", \"statuses\": {" << statuses.str() << "}"
            << ", \"first_error\": " << Json(tally->first_error) << ", \"wall_s\": " << wall_s
            << ", \"client_cpu_s\": " << cpu_s << ", \"p50_us\": " << at(0.5) << ", \"p99_us\": " << at(0.99) << "}"
            << std::endl;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = Parse(argc, argv);
  Client client(options);
  if (options.warm_up > 0) {
    const Tally warm = client.Run(options.warm_up);
    if (warm.errors) Refuse("warm-up failed: " + warm.first_error);
  }
  if (options.gate) {
    std::cout << "ready" << std::endl;
    std::string line;
    std::getline(std::cin, line);
  }
  const double cpu_before = CpuSeconds();
  const auto start = std::chrono::steady_clock::now();
  Tally tally = client.Run(options.requests);
  const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - start;
  Print(options, &tally, wall.count(), CpuSeconds() - cpu_before);
  return tally.errors ? 1 : 0;
}
