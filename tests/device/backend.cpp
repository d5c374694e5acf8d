// The device "sim": an accelerator whose memory is the CPU's, behind torch's key PrivateUse1.
//
// Each operation runs the CPU's kernel on the same bytes. What differs from the CPU is what a user's code meets on a GPU:
// tensors have another device, operations that mix devices fail, random numbers come from the device's own generator,
// and what makes the host wait for the device is reported. Memory that nobody has written reads as NaN, and so does
// pinned memory of the host before a copy to it that nobody has waited for.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/native_dropout_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <cmath>
#include <map>
#include <mutex>

namespace {

using at::Tensor;
using c10::DispatchKey;
using c10::IValue;
using c10::Storage;

constexpr c10::DeviceType kSim = c10::DeviceType::PrivateUse1;
const c10::Device kDevice(kSim, 0);

bool on_device(const Tensor& x) { return x.defined() && x.device().type() == kSim; }

// Called with a word whenever the host waits, or copies.
py::object* listener = nullptr;

void report(const std::string& what) {
  if (listener == nullptr) return;
  py::gil_scoped_acquire gil;
  (*listener)(what);
}

// -- memory ---------------------------------------------------------------------------------------------------------

void release_host_pointer(void* context) { delete static_cast<c10::DataPtr*>(context); }

c10::DataPtr as_device_memory(c10::DataPtr host) {
  void* bytes = host.get();
  return {bytes, new c10::DataPtr(std::move(host)), &release_host_pointer, kDevice};
}

struct DeviceAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t count) override {
    c10::DataPtr host = c10::GetCPUAllocator()->allocate(count);
    if (count > 0) std::memset(host.get(), 0xff, count);
    return as_device_memory(std::move(host));
  }
  void copy_data(void* to, const void* from, size_t count) const override { std::memcpy(to, from, count); }
};
DeviceAllocator device_allocator;
REGISTER_ALLOCATOR(kSim, &device_allocator);

// What the device can copy to while the host goes on.
std::map<const char*, size_t> pinned;
std::mutex pinned_mutex;  // autograd has a thread for the device

void release_pinned(void* context) {
  auto* host = static_cast<c10::DataPtr*>(context);
  {
    const std::lock_guard lock(pinned_mutex);
    pinned.erase(static_cast<const char*>(host->get()));
  }
  delete host;
}

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t count) override {
    c10::DataPtr host = c10::GetCPUAllocator()->allocate(count);
    void* bytes = host.get();
    const std::lock_guard lock(pinned_mutex);
    if (count > 0) pinned[static_cast<const char*>(bytes)] = count;
    return {bytes, new c10::DataPtr(std::move(host)), &release_pinned, c10::Device(c10::kCPU)};
  }
  void copy_data(void* to, const void* from, size_t count) const override { std::memcpy(to, from, count); }
};
PinnedAllocator pinned_allocator;

bool is_pinned(const void* address) {
  const auto* byte = static_cast<const char*>(address);
  const std::lock_guard lock(pinned_mutex);
  auto after = pinned.upper_bound(byte);
  if (after == pinned.begin()) return false;
  --after;
  return byte < after->first + after->second;
}

// Copies to pinned memory that the device has not made yet: where to, and what.
std::vector<std::pair<Tensor, Tensor>> late;
std::mutex late_mutex;

void finish() {
  const std::lock_guard lock(late_mutex);
  for (const auto& [host, value] : late) host.copy_(value);
  late.clear();
}

void release_storage(void* context) { delete static_cast<Storage*>(context); }

// A storage of one device that keeps that of the other alive, with the same bytes.
Storage shared(const Storage& storage, c10::Device device) {
  c10::DataPtr pointer(const_cast<void*>(storage.data()), new Storage(storage), &release_storage, device);
  c10::Allocator* own = device.is_cpu() ? c10::GetCPUAllocator() : static_cast<c10::Allocator*>(&device_allocator);
  return Storage(c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), storage.nbytes(), std::move(pointer), own, /*resizable=*/true));
}

Tensor with_storage(Storage storage, const Tensor& like, DispatchKey key) {
  Tensor x = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), like.dtype());
  c10::TensorImpl* impl = x.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  if (like.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
  x._set_conj(like.is_conj());
  x._set_neg(like.is_neg());
  return x;
}

// -- the device, and its random numbers -----------------------------------------------------------------------------

struct DeviceGuard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kSim; }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
  c10::Stream getDefaultStream(c10::Device) const override { return getStream(kDevice); }
  c10::Stream getNewStream(c10::Device, int) const override { return getStream(kDevice); }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override { synchronizeDevice(0); }
  void synchronizeDevice(c10::DeviceIndex) const override {
    report("synchronize");
    finish();
  }
  void record(void** event, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override { *event = &listener; }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, c10::DeviceIndex) const noexcept override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, DeviceGuard);

// Draws what a generator of the CPU with the same seed draws.
struct DeviceGenerator final : c10::GeneratorImpl {
  explicit DeviceGenerator(at::Generator own)
      : c10::GeneratorImpl(kDevice, c10::DispatchKeySet(DispatchKey::PrivateUse1)), host(std::move(own)) {}
  static c10::DeviceType device_type() { return kSim; }
  void set_current_seed(uint64_t seed) override { host.set_current_seed(seed); }
  uint64_t current_seed() const override { return host.current_seed(); }
  uint64_t seed() override { return host.seed(); }
  void set_offset(uint64_t) override { TORCH_CHECK(false, "sim: a generator has no offset"); }
  uint64_t get_offset() const override { TORCH_CHECK(false, "sim: a generator has no offset"); }
  void set_state(const c10::TensorImpl& state) override { host.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return host.unsafeGetGeneratorImpl()->get_state(); }
  DeviceGenerator* clone_impl() const override { return new DeviceGenerator(host.clone()); }

  at::Generator host;
};

at::Generator new_generator() {
  return at::make_generator<DeviceGenerator>(at::detail::createCPUGenerator(c10::default_rng_seed_val));
}

const at::Generator& default_generator() {
  static const at::Generator one = new_generator();
  return one;
}

at::Generator host_generator(const at::Generator& generator) {
  return static_cast<DeviceGenerator*>(generator.unsafeGetGeneratorImpl())->host;
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return default_generator(); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return new_generator(); }
  at::Device getDeviceFromPtr(void*) const override { return kDevice; }
  bool isPinnedPtr(const void* address) const override { return is_pinned(address); }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  void resizePrivateUse1Bytes(const Storage& storage, size_t count) const override {
    c10::DataPtr fresh = device_allocator.allocate(count);
    std::memcpy(fresh.get(), storage.data(), std::min(count, storage.nbytes()));
    storage.unsafeGetStorageImpl()->set_data_ptr(std::move(fresh));
    storage.unsafeGetStorageImpl()->set_nbytes(count);
  }
};

// -- any operation, by the CPU's kernel -----------------------------------------------------------------------------

// The tensors of one call, and what stands for them on the CPU.
class Borrowed {
 public:
  Tensor to_host(const Tensor& x) {
    if (!on_device(x)) return x;
    for (const auto& [device, host] : tensors_)
      if (device.is_same(x)) return host;
    tensors_.emplace_back(x, with_storage(storage_for(x.storage()), x, DispatchKey::CPU));
    return tensors_.back().second;
  }

  Tensor to_device(const Tensor& x) {
    if (!x.defined() || !x.device().is_cpu() || x.layout() != at::kStrided) return x;
    for (const auto& [device, host] : tensors_)
      if (host.is_same(x)) return device;
    return with_storage(storage_of(x.storage()), x, DispatchKey::PrivateUse1);
  }

  // Arguments that the kernel has given another size or other memory, as those named out.
  void write_back() {
    for (auto& [device, host] : tensors_) {
      const bool moved = host.storage().data() != device.storage().data();
      if (!moved && host.sizes() == device.sizes() && host.strides() == device.strides()) continue;
      c10::TensorImpl* impl = device.unsafeGetTensorImpl();
      if (moved) impl->set_storage_keep_dtype(storage_of(host.storage()));
      impl->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
    }
  }

 private:
  Storage storage_for(const Storage& device) {
    for (const auto& [own, host] : storages_)
      if (own.unsafeGetStorageImpl() == device.unsafeGetStorageImpl()) return host;
    storages_.emplace_back(device, shared(device, c10::Device(c10::kCPU)));
    return storages_.back().second;
  }

  // Several results may share a new storage, too.
  Storage storage_of(const Storage& host) {
    for (const auto& [device, own] : storages_)
      if (own.unsafeGetStorageImpl() == host.unsafeGetStorageImpl() && own.data() == device.data()) return device;
    storages_.emplace_back(shared(host, kDevice), host);
    return storages_.back().first;
  }

  std::vector<std::pair<Tensor, Tensor>> tensors_;     // device, CPU
  std::vector<std::pair<Storage, Storage>> storages_;  // device, CPU
};

template <class Each>
IValue with_each_tensor(const IValue& value, const Each& each) {
  if (value.isTensor()) return each(value.toTensor());
  if (value.isTensorList()) {
    c10::List<Tensor> found;
    for (const Tensor& x : value.toTensorVector()) found.push_back(each(x));
    return found;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> found;
    for (const std::optional<Tensor>& x : value.toOptionalTensorVector())
      found.push_back(x ? std::optional<Tensor>(each(*x)) : x);
    return found;
  }
  return value;
}

// As on CUDA: beside tensors of the device an operation takes a tensor of the CPU if that is 0-d, not in a list and not
// written, and indices.
void refuse_two_devices(const c10::FunctionSchema& schema, const IValue* values) {
  const bool indexes = schema.name().find("index") != std::string::npos;
  bool any = false;
  std::optional<Tensor> other;
  for (size_t i = 0; i < schema.arguments().size(); ++i) {
    const c10::Argument& argument = schema.arguments()[i];
    const bool written = argument.alias_info() != nullptr && argument.alias_info()->isWrite();
    const bool listed = values[i].isTensorList() || values[i].isOptionalTensorList();
    with_each_tensor(values[i], [&](const Tensor& x) {
      any = any || on_device(x);
      const bool taken = !written && (listed ? indexes : x.defined() && x.dim() == 0);
      if (x.defined() && x.device().is_cpu() && !taken) other = x;
      return x;
    });
  }
  if (any && other)
    TORCH_CHECK(
        false, "Expected all tensors to be on the same device, but found at least two devices, sim:0 and cpu! (",
        schema.name(), " got a tensor of the CPU of shape ", other->sizes(), ")");
}

// Operations whose result, or its size, the host has to read.
bool makes_the_host_wait(const c10::FunctionSchema& schema) {
  static const std::set<std::string> names = {
      "aten::nonzero", "aten::equal", "aten::masked_select", "aten::is_nonzero", "aten::_unique2", "aten::unique_dim",
      "aten::unique_consecutive", "aten::bincount", "aten::_linalg_check_errors"};
  return names.count(schema.name()) > 0 ||
      (schema.name() == "aten::repeat_interleave" && schema.overload_name() == "Tensor");
}

void run_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const c10::FunctionSchema& schema = op.schema();
  const size_t count = schema.arguments().size();
  IValue* given = stack->data() + stack->size() - count;
  refuse_two_devices(schema, given);
  if (makes_the_host_wait(schema)) {
    report(schema.name());
    finish();
  }
  Borrowed borrowed;
  for (size_t i = 0; i < count; ++i) {
    const auto optional = schema.arguments()[i].type()->cast<c10::OptionalType>();
    if (given[i].isNone() && optional && optional->getElementType()->kind() == c10::TypeKind::GeneratorType)
      given[i] = host_generator(default_generator());
    else if (given[i].isGenerator() && given[i].toGenerator().device().type() == kSim)
      given[i] = host_generator(given[i].toGenerator());
    else if (given[i].isDevice() && given[i].toDevice().type() == kSim)
      given[i] = c10::Device(c10::kCPU);
    else
      given[i] = with_each_tensor(given[i], [&](const Tensor& x) { return borrowed.to_host(x); });
  }
  op.redispatchBoxed(c10::DispatchKeySet(DispatchKey::CPU), stack);
  borrowed.write_back();
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); ++i)
    (*stack)[i] = with_each_tensor((*stack)[i], [&](const Tensor& x) { return borrowed.to_device(x); });
}

// -- operations that are the device's own: memory, views, and copies from one device to another -----------------------

using Sizes = c10::SymIntArrayRef;
using Dtype = std::optional<c10::ScalarType>;

Tensor empty(
    c10::IntArrayRef sizes, Dtype dtype, std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool>,
    std::optional<c10::MemoryFormat> format) {
  return at::detail::empty_generic(
      sizes, &device_allocator, c10::DispatchKeySet(DispatchKey::PrivateUse1), c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(
    c10::IntArrayRef sizes, c10::IntArrayRef strides, Dtype dtype, std::optional<c10::Layout>,
    std::optional<c10::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(
      sizes, strides, &device_allocator, c10::DispatchKeySet(DispatchKey::PrivateUse1), c10::dtype_or_default(dtype));
}

Tensor zeros_without_memory(
    c10::IntArrayRef sizes, Dtype dtype, std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool>) {
  static at::native::ZeroTensorAllocator none(kDevice);
  const auto keys = c10::DispatchKeySet({DispatchKey::PrivateUse1, DispatchKey::ZeroTensor});
  return at::detail::empty_generic(sizes, &none, keys, c10::dtype_or_default(dtype), std::nullopt);
}

Tensor as_strided(const Tensor& x, Sizes sizes, Sizes strides, std::optional<c10::SymInt> offset) {
  const auto from = offset ? std::optional<int64_t>(offset->expect_int()) : std::nullopt;
  return at::native::as_strided_tensorimpl(x, C10_AS_INTARRAYREF_SLOW(sizes), C10_AS_INTARRAYREF_SLOW(strides), from);
}

Tensor view(const Tensor& x, Sizes sizes) { return at::native::view(x, C10_AS_INTARRAYREF_SLOW(sizes)); }

Tensor reshape_alias(const Tensor& x, Sizes sizes, Sizes strides) {
  return at::native::_reshape_alias(x, C10_AS_INTARRAYREF_SLOW(sizes), C10_AS_INTARRAYREF_SLOW(strides));
}

const Tensor& resize(const Tensor& x, Sizes sizes, std::optional<c10::MemoryFormat> format) {
  return at::native::resize_(x, C10_AS_INTARRAYREF_SLOW(sizes), format);
}

Tensor& set_part(Tensor& x, Storage storage, c10::SymInt offset, Sizes sizes, Sizes strides) {
  c10::TensorImpl* impl = x.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  const auto size = C10_AS_INTARRAYREF_SLOW(sizes);
  if (strides.empty() && !sizes.empty())
    impl->set_sizes_contiguous(size);
  else
    impl->set_sizes_and_strides(size, C10_AS_INTARRAYREF_SLOW(strides));
  impl->set_storage_offset(offset.expect_int());
  return x;
}

Tensor& set_all(Tensor& x, Storage storage) {
  const c10::SymInt count(static_cast<int64_t>(storage.nbytes() / x.itemsize()));
  return set_part(x, std::move(storage), 0, {count}, {});
}

// A copy that does not block the host reads small pieces of memory at once, as CUDA does, and the rest while it waits.
constexpr size_t kStaged = 64 * 1024;

Tensor copy_from(const Tensor& from, const Tensor& to, bool non_blocking) {
  Borrowed borrowed;
  const Tensor value = borrowed.to_host(from), target = borrowed.to_host(to);
  if (!on_device(to) && non_blocking && is_pinned(to.data_ptr())) {
    const std::lock_guard lock(late_mutex);
    late.emplace_back(to, value.clone());
    to.fill_(to.is_floating_point() ? c10::Scalar(std::nan("")) : c10::Scalar(0));
    return to;
  }
  if (!on_device(to)) report("to the host");
  const bool read_later = non_blocking && (is_pinned(from.data_ptr()) || from.nbytes() <= kStaged);
  if (!on_device(from) && !read_later) report("from the host");
  if (!on_device(to) || !on_device(from)) finish();  // what came before on the same stream
  target.copy_(value);
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  at::native::resize_(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

at::Scalar number_of(const Tensor& x) {
  report("item");
  finish();
  Borrowed borrowed;
  return at::native::_local_scalar_dense_cpu(borrowed.to_host(x));
}

int64_t attention_by_its_formula(
    const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool, std::optional<double>,
    bool) {
  return 0;
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("_efficientzerotensor", zeros_without_memory);
  library.impl("as_strided", as_strided);
  library.impl("view", view);
  library.impl("_reshape_alias", reshape_alias);
  library.impl("resize_", resize);
  library.impl("set_.source_Tensor", at::native::set_tensor_);
  library.impl("set_.source_Storage", set_all);
  library.impl("set_.source_Storage_storage_offset", set_part);
  library.impl("_copy_from", copy_from);
  library.impl("_copy_from_and_resize", copy_from_and_resize);
  library.impl("_local_scalar_dense", number_of);
  library.impl("native_dropout", at::native::native_dropout_cpu);  // made of operations that take a generator
  library.impl("_fused_sdp_choice", attention_by_its_formula);
  // Torch's own way to it, for a device that has only the form with out=, warns of an output that is resized.
  library.impl("mse_loss", torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, library) { library.fallback(torch::CppFunction::makeFallthrough()); }

using namespace at::autocast;
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  KERNEL_PRIVATEUSEONE(mm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(matmul, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(linear, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(cross_entropy_loss, fp32)
  KERNEL_PRIVATEUSEONE(mse_loss, fp32)
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  static Hooks hooks;
  at::RegisterPrivateUse1HooksInterface(&hooks);
  module.def("listen", [](py::object function) { listener = new py::object(std::move(function)); });
  module.def("generator", [] { return default_generator(); });
}
