import time, torch, torch.nn as nn
from torch.utils.flop_counter import FlopCounterMode
from derma.classifier import Classifier
from torch.profiler import profile, ProfilerActivity
print(torch.__version__, torch.cuda.get_device_name(), flush=True)
a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
for _ in range(3): a @ a
torch.cuda.synchronize(); t = time.perf_counter()
for _ in range(10): a @ a
torch.cuda.synchronize(); peak = 10 * 2 * 8192**3 / (time.perf_counter() - t)
print(f"matmul {peak/1e12:.0f} TFLOP/s", flush=True); del a
torch.backends.cudnn.deterministic = True
for name in ("resnet50", "tf_efficientnetv2_b0", "densenet169"):
    net = Classifier(name, "none", False).cuda().to(memory_format=torch.channels_last)
    opt = torch.optim.AdamW(net.parameters(), fused=True)
    for batch, dtype in ((32, torch.bfloat16), (128, torch.bfloat16), (32, torch.float16)):
        x = torch.randint(0, 255, (batch, 3, 256, 256), dtype=torch.uint8, device="cuda"); y = torch.randint(0, 3, (batch,), device="cuda")
        def step():
            with torch.autocast("cuda", dtype): loss = nn.functional.cross_entropy(net(x).float(), y)
            loss.backward(); opt.step(); opt.zero_grad()
        with FlopCounterMode(display=False) as f: step()
        for _ in range(5): step()
        torch.cuda.synchronize(); t = time.perf_counter()
        for _ in range(20): step()
        torch.cuda.synchronize(); s = (time.perf_counter() - t) / 20
        with profile(activities=[ProfilerActivity.CUDA]) as p:
            for _ in range(5): step()
            torch.cuda.synchronize()
        busy = sum(e.self_device_time_total for e in p.key_averages()) / 5e6
        kernels = sum(e.count for e in p.key_averages()) / 5
        print(f"{name} batch {batch} {dtype}: {batch/s:.0f} img/s, step {1e3*s:.1f} ms, kernels busy {1e3*busy:.1f} ms ({kernels:.0f}), {f.get_total_flops()/s/1e12:.1f} TFLOP/s", flush=True)
