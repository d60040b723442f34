// Operators: the reparameterization with and without the divergence, its backward and its tangent.

#include "cpu/reparameterize.h"
#include "cuda/reparameterize.h"

#include "ops/common.h"

STABLE_TORCH_LIBRARY_FRAGMENT(fastgen, m) {
  m.def("reparameterize(Tensor mu, Tensor logvar, Tensor seed) -> Tensor");
  m.def("reparameterize_kl(Tensor mu, Tensor logvar, Tensor seed) -> (Tensor, Tensor)");
  m.def(
      "reparameterize_backward(Tensor? grad_z, Tensor? grad_kl, Tensor mu, Tensor logvar, "
      "Tensor seed) -> (Tensor, Tensor)");
  m.def("scaled_noise(Tensor scale, Tensor logvar, Tensor seed) -> Tensor");
}

// A namespace of their own: the formulas have some of the same names.
namespace fastgen::operators {
namespace {

// A shape (N, C, *) as three extents: samples, channels, and positions, the rest.
std::int64_t sample_count(const Tensor& tensor) { return tensor.dim() > 0 ? tensor.size(0) : 1; }

std::int64_t channel_count(const Tensor& tensor) { return tensor.dim() > 1 ? tensor.size(1) : 1; }

std::int64_t position_count(const Tensor& tensor) {
  std::int64_t count = 1;
  for (std::int64_t d = 2; d < tensor.dim(); ++d) count *= tensor.size(d);
  return count;
}

// Strides over those three, or nothing where the positions are not evenly apart. An extent of 1 has
// no stride that matters; it gets the one of contiguous memory.
std::optional<Strides> strides_of(const Tensor& tensor) {
  std::optional<std::int64_t> step;  // between positions
  std::int64_t expected = 0;         // of the next dimension outwards
  for (std::int64_t d = tensor.dim() - 1; d >= 2; --d) {
    if (tensor.size(d) == 1) continue;
    if (!step.has_value()) {
      step = tensor.stride(d);
      expected = *step;
    }
    if (tensor.stride(d) != expected) return std::nullopt;
    expected *= tensor.size(d);
  }
  const std::int64_t channels = channel_count(tensor), positions = position_count(tensor);
  return Strides{sample_count(tensor) > 1 ? tensor.stride(0) : channels * positions,
                 channels > 1 ? tensor.stride(1) : positions, step.value_or(1)};
}

// A tensor whose positions are evenly apart: itself, or a contiguous copy.
Tensor readable(const Tensor& tensor) {
  return strides_of(tensor).has_value() ? tensor : torch::stable::contiguous(tensor);
}

// A result in the layout of `like`. The kernel writes to `target`, which is another tensor only
// where that layout has no even steps; `finish` then moves the values.
struct Result {
  explicit Result(const Tensor& like)
      : tensor(in_kept_memory(torch::stable::empty_like(like))),
        target(strides_of(tensor).has_value()
                   ? tensor
                   : torch::stable::empty_like(torch::stable::contiguous(like))) {}

  Tensor finish() {
    if (!strides_of(tensor).has_value()) torch::stable::copy_(tensor, target);
    return tensor;
  }

  Tensor tensor;
  Tensor target;
};

void check_inputs(const Tensor& mu, const char* name, const Tensor& logvar, const Tensor& seed) {
  dtype_of(mu, name);
  check_same_device(logvar, "logvar", mu, name);
  check_same_dtype(logvar, "logvar", mu, name);
  check_same_shape(logvar, "logvar", mu, name);
  check_same_device(seed, "seed", mu, name);
  STD_TORCH_CHECK(seed.scalar_type() == ScalarType::Long && seed.numel() == 1,
                  "seed must be a 0-dim int64 tensor");
}

// Everything of a call but what its kind adds. `mu` and `logvar` are readable.
template <typename Call>
Call call_of(Reparameterization kind, const Tensor& mu, const Tensor& logvar,
             const Tensor& target) {
  Call call{};
  call.kind = kind;
  call.dtype = dtype_of(mu, "mu");
  call.mean = mu.const_data_ptr();
  call.mean_strides = *strides_of(mu);
  call.logvar = logvar.const_data_ptr();
  call.logvar_strides = *strides_of(logvar);
  call.result = target.mutable_data_ptr();
  call.result_strides = *strides_of(target);
  call.samples = sample_count(mu);
  call.channels = channel_count(mu);
  call.positions = position_count(mu);
  return call;
}

// Where no sample is told from the next and all memory is in row-major order, the tensor is one
// long sample: no vector is then shared by two.
template <typename Call>
void join_samples(Call& call) {
  const std::int64_t row = call.channels * call.positions;
  for (const Strides* s : {&call.mean_strides, &call.logvar_strides, &call.grad_z_strides,
                           &call.result_strides, &call.grad_logvar_strides}) {
    const bool absent = (s == &call.grad_z_strides && call.grad_z == nullptr) ||
                        (s == &call.grad_logvar_strides && call.grad_logvar == nullptr);
    if (absent) continue;
    const bool flat = (call.positions == 1 || s->position == 1) &&
                      (call.channels == 1 || s->channel == call.positions) &&
                      (call.samples == 1 || s->sample == row);
    if (!flat) return;
  }
  const Strides flat{call.samples * row, 1, 1};
  call.mean_strides = call.logvar_strides = call.grad_z_strides = flat;
  call.result_strides = call.grad_logvar_strides = flat;
  call.channels = call.samples * row;
  call.samples = call.positions = 1;
}

const std::int64_t* value_of(const Tensor& seed) {
  return static_cast<const std::int64_t*>(seed.const_data_ptr());
}

struct OnCpu {
  using Call = cpu::ReparameterizeCall;
  explicit OnCpu(const Tensor&) {}

  // Of the divergences and their gradient.
  static ScalarType kl_type(const Tensor& mu) { return wide_type(mu); }

  void run(Call& call, const Tensor& like, const Tensor& seed) const {
    call.seed = *value_of(seed);
    if (call.positions == 1) {  // then channels are what is evenly apart
      for (Strides* s : {&call.mean_strides, &call.logvar_strides, &call.grad_z_strides,
                         &call.result_strides, &call.grad_logvar_strides}) {
        s->position = s->channel;
      }
      call.positions = call.channels;
      call.channels = 1;
    }
    call.plan = cpu::noise_plan(call);
    Tensor workspace;
    const bool sums = call.kl != nullptr && call.plan.chunks > 1;
    if (sums) {
      workspace = torch::stable::new_empty(like, {call.plan.pieces}, ScalarType::Double);
      call.partials = static_cast<double*>(workspace.mutable_data_ptr());
    }
    run_pieces(cpu::reparameterize_kernel(), call, call.plan.pieces, kWeight * kPieceElements);
    if (sums) cpu::reparameterize_sum_kernel()(call, 0, call.samples);
  }

  // An element costs as much as many of a kernel that only moves memory.
  static constexpr std::int64_t kPieceElements = cpu::kNoisePiece, kWeight = 4;
};

#ifdef FASTGEN_WITH_CUDA
struct OnCuda {
  using Call = cuda::ReparameterizeCall;
  explicit OnCuda(const Tensor& tensor) : guard(tensor) {}

  static ScalarType kl_type(const Tensor&) { return ScalarType::Float; }

  void run(Call& call, const Tensor& like, const Tensor& seed) const {
    call.seed = value_of(seed);
    Tensor workspace;
    if (call.kind == Reparameterization::sample_kl) {  // of no samples, kl is nullptr as well
      workspace =
          torch::stable::new_empty(like, {cuda::partial_sums_size(call)}, ScalarType::Float);
      call.partials = static_cast<float*>(workspace.mutable_data_ptr());
    } else if (call.grad_kl == nullptr) {
      join_samples(call);
    }
    check_launch(cuda::reparameterize(call, current_cuda_stream(like)));
  }

  OnDeviceOf guard;
};
#endif

template <typename On>
Tensor from_mean(Reparameterization kind, const Tensor& mean, const char* name,
                 const Tensor& like, const Tensor& logvar, const Tensor& seed) {
  check_inputs(mean, name, logvar, seed);
  const On device(mean);
  const Tensor read_mean = readable(mean), read_logvar = readable(logvar);
  Result result(like);
  auto call = call_of<typename On::Call>(kind, read_mean, read_logvar, result.target);
  device.run(call, mean, seed);
  return result.finish();
}

template <typename On>
Tensor reparameterize(Tensor mu, Tensor logvar, Tensor seed) {
  return from_mean<On>(Reparameterization::sample, mu, "mu", mu, logvar, seed);
}

// In the layout of logvar: the scale is a gradient, which may come in any, or expanded.
template <typename On>
Tensor scaled_noise(Tensor scale, Tensor logvar, Tensor seed) {
  return from_mean<On>(Reparameterization::scaled_noise, scale, "scale", logvar, logvar, seed);
}

template <typename On>
std::tuple<Tensor, Tensor> reparameterize_kl(Tensor mu, Tensor logvar, Tensor seed) {
  check_inputs(mu, "mu", logvar, seed);
  STD_TORCH_CHECK(mu.dim() > 0, "mu must have shape (N, ...) for one divergence per sample");
  const On device(mu);
  const Tensor read_mu = readable(mu), read_logvar = readable(logvar);
  Result z(mu);
  Tensor kl = torch::stable::new_empty(mu, {mu.size(0)}, On::kl_type(mu));
  auto call = call_of<typename On::Call>(Reparameterization::sample_kl, read_mu, read_logvar,
                                         z.target);
  call.kl = static_cast<decltype(call.kl)>(kl.mutable_data_ptr());
  device.run(call, mu, seed);
  return {z.finish(), kl};
}

template <typename On>
std::tuple<Tensor, Tensor> reparameterize_backward(std::optional<Tensor> grad_z,
                                                   std::optional<Tensor> grad_kl, Tensor mu,
                                                   Tensor logvar, Tensor seed) {
  check_inputs(mu, "mu", logvar, seed);
  if (grad_z.has_value()) {
    check_same_device(*grad_z, "grad_z", mu, "mu");
    check_same_dtype(*grad_z, "grad_z", mu, "mu");
    check_same_shape(*grad_z, "grad_z", mu, "mu");
  }
  if (grad_kl.has_value()) {
    check_same_device(*grad_kl, "grad_kl", mu, "mu");
    STD_TORCH_CHECK(mu.dim() > 0 && grad_kl->scalar_type() == On::kl_type(mu) &&
                        grad_kl->dim() == 1 && grad_kl->size(0) == mu.size(0),
                    "grad_kl must be ", torch::headeronly::toString(On::kl_type(mu)),
                    " of shape (N)");
  }
  const On device(mu);
  const Tensor read_mu = readable(mu), read_logvar = readable(logvar);
  Result grad_mu(mu), grad_logvar(logvar);
  auto call = call_of<typename On::Call>(Reparameterization::backward, read_mu, read_logvar,
                                         grad_mu.target);
  call.grad_logvar = grad_logvar.target.mutable_data_ptr();
  call.grad_logvar_strides = *strides_of(grad_logvar.target);
  std::optional<Tensor> read_grad_z;
  if (grad_z.has_value()) {
    read_grad_z = readable(*grad_z);
    call.grad_z = read_grad_z->const_data_ptr();
    call.grad_z_strides = *strides_of(*read_grad_z);
  }
  if (grad_kl.has_value()) {
    call.grad_kl = static_cast<decltype(call.grad_kl)>(grad_kl->const_data_ptr());
    call.grad_kl_stride = grad_kl->stride(0);
  }
  device.run(call, mu, seed);
  return {grad_mu.finish(), grad_logvar.finish()};
}

}  // namespace
}  // namespace fastgen::operators

#define FASTGEN_IMPLEMENT(m, On)                                                    \
  m.impl("reparameterize", TORCH_BOX(&fastgen::operators::reparameterize<On>));       \
  m.impl("reparameterize_kl", TORCH_BOX(&fastgen::operators::reparameterize_kl<On>)); \
  m.impl("reparameterize_backward",                                                 \
         TORCH_BOX(&fastgen::operators::reparameterize_backward<On>));                \
  m.impl("scaled_noise", TORCH_BOX(&fastgen::operators::scaled_noise<On>))

STABLE_TORCH_LIBRARY_IMPL(fastgen, CPU, m) { FASTGEN_IMPLEMENT(m, fastgen::operators::OnCpu); }

#ifdef FASTGEN_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(fastgen, CUDA, m) { FASTGEN_IMPLEMENT(m, fastgen::operators::OnCuda); }
#endif
