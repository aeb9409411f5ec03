/* A libnvidia-ml.so.1 of two cards, in the layout of NVIDIA's public header: the second one is lost once it was met. */
#include <stdio.h>
#include <string.h>

enum { OK = 0, UNSUPPORTED = 3, INSUFFICIENT = 7, LOST = 15 };

typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char busId[32]; } Pci;
typedef struct { unsigned gpu, memory; } Rates;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } Process;

static int cards[2] = {0, 1};
#define NUMBER(handle) (*(int *)(handle))
#define TELL(handle) do { if (NUMBER(handle)) return LOST; } while (0)

int nvmlInitWithFlags(unsigned flags) { return flags ? UNSUPPORTED : OK; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return code == LOST ? "GPU is lost" : code == UNSUPPORTED ? "Not Supported" : "?"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { *handle = &cards[index]; return OK; }
int nvmlDeviceGetName(void *h, char *name, unsigned size) { (void)h; snprintf(name, size, "Card C"); return OK; }
int nvmlDeviceGetUUID(void *h, char *uuid, unsigned size) { snprintf(uuid, size, "GPU-c000000%d", NUMBER(h)); return OK; }
int nvmlDeviceGetPciInfo_v3(void *h, Pci *pci)
{
    memset(pci, 0, sizeof *pci);
    snprintf(pci->busId, sizeof pci->busId, "00000000:%02X:00.0", NUMBER(h) + 1);
    return OK;
}
int nvmlDeviceGetTemperature(void *h, int sensor, unsigned *c) { TELL(h); *c = sensor == 0 ? 71 : 0; return OK; }
int nvmlDeviceGetUtilizationRates(void *h, Rates *r) { TELL(h); r->gpu = 93; r->memory = 40; return OK; }
int nvmlDeviceGetMemoryInfo(void *h, Memory *m)
{
    TELL(h);
    m->total = 6144ull << 20;
    m->used = 1024ull << 20;
    m->free = m->total - m->used;
    return OK;
}
int nvmlDeviceGetPowerUsage(void *h, unsigned *mw) { TELL(h); *mw = 118250; return OK; }
int nvmlDeviceGetEnforcedPowerLimit(void *h, unsigned *mw) { TELL(h); *mw = 120000; return OK; }
int nvmlDeviceGetFanSpeed(void *h, unsigned *pct) { TELL(h); *pct = 66; return OK; }
int nvmlDeviceGetClockInfo(void *h, int kind, unsigned *mhz) { TELL(h); *mhz = kind == 1 ? 1500 : 0; return OK; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *h, unsigned long long *bits) { TELL(h); *bits = 0x20 | 0x4 | 0x1; return OK; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned *count, Process *out)
{
    TELL(h);
    if (*count < 1) {
        *count = 1;
        return INSUFFICIENT;
    }
    memset(out, 0, sizeof *out);
    out->pid = 4242;
    out->used = 900ull << 20;
    *count = 1;
    return OK;
}
