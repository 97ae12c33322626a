// Lets a build of PyTorch without CUDA run fake tensors of device "cuda" through its own autograd engine: a device guard
// that does nothing, hooks that say there is one device, and the choice of attention kernel that a GPU makes.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/DispatchStub.h>
#include <ATen/native/transformers/attention.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

c10::Device here() { return c10::Device(c10::DeviceType::CUDA, 0); }
c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, here()); }

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Device exchangeDevice(c10::Device) const override { return here(); }
  c10::Device getDevice() const override { return here(); }
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};

struct Hooks : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  int getNumGPUs() const override { return 1; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  void deviceSynchronize(c10::DeviceIndex) const override {}
};

// The first kernel that is enabled and takes the inputs, in the order that is set, as aten/.../cuda/sdp_utils.cpp has
// it for compute capability 8.0 and above.
int64_t choose(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const std::optional<at::Tensor>& mask,
               double dropout, bool causal, std::optional<double>, bool gqa) {
  auto& context = at::globalContext();
  const bool low = q.scalar_type() == at::kHalf || q.scalar_type() == at::kBFloat16;
  const bool square = q.sym_size(-2) == k.sym_size(-2);
  const bool heads = gqa || q.sym_size(-3) == k.sym_size(-3);
  const auto size = q.sym_size(-1);
  for (const auto backend : context.sDPPriorityOrder()) {
    switch (backend) {
      case at::SDPBackend::flash_attention:
        if (context.userEnabledFlashSDP() && low && heads && !mask && size <= 256 && (square || !causal)) return 1;
        break;
      case at::SDPBackend::efficient_attention:
        if (context.userEnabledMemEfficientSDP() && heads && !gqa) return 2;
        break;
      case at::SDPBackend::cudnn_attention:
        if (context.userEnabledCuDNNSDP() && low && heads && size % 8 == 0 && size <= 128) return 3;
        break;
      case at::SDPBackend::math:
        if (context.userEnabledMathSDP()) return 0;
        break;
      default:
        break;
    }
  }
  return -1;
}

}  // namespace

// Makes the process pretend, for ever; 0 where it does.
extern "C" int pretend() {
  c10::impl::registerDeviceGuard(c10::DeviceType::CUDA, new Guard());
  // `import torch` has already made the hooks of a build without CUDA: that object gets our methods.
  auto* theirs = const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks());
  at::CUDAHooksInterface* ours = new Hooks({});
  *reinterpret_cast<void**>(theirs) = *reinterpret_cast<void**>(ours);
  at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&choose);
  volatile bool has = at::detail::getCUDAHooks().hasCUDA();
  return has ? 0 : 1;
}
