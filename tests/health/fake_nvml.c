/* A libnvidia-ml.so.1 that says what the file in FAKE_NVML_SCENARIO says, one answer a line:
 *
 *     nvmlDeviceGetTemperature/0 = 41          a number, or several; what stands after '/' are the arguments
 *     3:nvmlDeviceGetTemperature/0 = 93        of GPU 3 alone
 *     3:nvmlDeviceGetFieldValues/164/7 = 0     field 164 of scope (link) 7
 *     nvmlDeviceGetFieldValues/several = !2    of any call for more than one field
 *     nvmlDeviceGetName = NVIDIA H100          text
 *     nvmlDeviceGetPowerUsage = !4             NVML error 4
 *     nvmlDeviceGetPowerUsage = hang           does not return
 *
 * What stands nowhere is NVML_ERROR_NOT_SUPPORTED. The structures are those of nvml.h.
 */
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int nvmlReturn_t;
typedef void *nvmlDevice_t;
typedef unsigned long long u64;
enum { SUCCESS = 0, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, VERSION_MISMATCH = 25, DRIVER = -1, LONGEST = 512 };

static char *scenario;

static int number_of(nvmlDevice_t device) { return (int)(intptr_t)device - 1; }

static void load(void) {
    if (scenario) return;
    const char *path = getenv("FAKE_NVML_SCENARIO");
    FILE *file = path ? fopen(path, "r") : NULL;
    scenario = calloc(1, 1 << 20);
    if (!file) return;
    scenario[0] = '\n';
    scenario[1 + fread(scenario + 1, 1, (1 << 20) - 2, file)] = 0;
    fclose(file);
}

static int find(const char *key, char *value) {
    char line[LONGEST];
    snprintf(line, sizeof line, "\n%s = ", key);
    const char *at = strstr(scenario, line);
    if (!at) return 0;
    at += strlen(line);
    size_t length = strcspn(at, "\n");
    if (length >= LONGEST) length = LONGEST - 1;
    memcpy(value, at, length);
    value[length] = 0;
    return 1;
}

/* The answer's text: first of this GPU, then of all. */
static nvmlReturn_t say(int gpu, char *value, const char *format, ...) {
    char name[LONGEST - 8], key[LONGEST];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    load();
    snprintf(key, sizeof key, "%d:%s", gpu, name);
    /* "3:*" is whatever is asked of GPU 3. */
    char all[32];
    snprintf(all, sizeof all, "%d:*", gpu);
    if (!find(key, value) && !find(all, value) && !find(name, value)) return NOT_SUPPORTED;
    if (!strcmp(value, "hang"))
        for (;;) pause();
    return value[0] == '!' ? atoi(value + 1) : SUCCESS;
}

static nvmlReturn_t text(int gpu, const char *name, char *out, unsigned size) {
    char value[LONGEST];
    nvmlReturn_t status = say(gpu, value, "%s", name);
    if (status == SUCCESS) snprintf(out, size, "%s", value);
    return status;
}

enum { MOST = 24 };

/* Those that are not given stay 0. */
static void numbers(const char *value, u64 *out) {
    char *end;
    memset(out, 0, MOST * sizeof *out);
    for (int i = 0; i < MOST; i++, value = end) {
        out[i] = (u64)strtoll(value, &end, 0);
        if (end == value) return;
    }
}

#define NUMBERS(gpu, ...)                                      \
    char value[LONGEST];                                       \
    u64 n[MOST];                                                 \
    nvmlReturn_t status = say(gpu, value, __VA_ARGS__);        \
    if (status != SUCCESS) return status;                      \
    numbers(value, n)

#define ONE(name, type)                                        \
    nvmlReturn_t name(nvmlDevice_t d, type *out) {             \
        NUMBERS(number_of(d), #name);                          \
        *out = (type)n[0];                                     \
        return SUCCESS;                                        \
    }
#define TWO(name)                                              \
    nvmlReturn_t name(nvmlDevice_t d, unsigned *a, unsigned *b) { \
        NUMBERS(number_of(d), #name);                          \
        *a = (unsigned)n[0], *b = (unsigned)n[1];              \
        return SUCCESS;                                        \
    }
#define ONE_OF(name, type)                                     \
    nvmlReturn_t name(nvmlDevice_t d, unsigned which, type *out) { \
        NUMBERS(number_of(d), #name "/%u", which);             \
        *out = (type)n[0];                                     \
        return SUCCESS;                                        \
    }
#define TEXT(name)                                             \
    nvmlReturn_t name(nvmlDevice_t d, char *out, unsigned size) { return text(number_of(d), #name, out, size); }

/* The driver. */
nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    char value[LONGEST];
    nvmlReturn_t status = say(DRIVER, value, "nvmlInitWithFlags");
    return status == NOT_SUPPORTED ? SUCCESS : status;
}
nvmlReturn_t nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(nvmlReturn_t status) {
    static char said[32];
    snprintf(said, sizeof said, "error %d", status);
    return said;
}
nvmlReturn_t nvmlSystemGetDriverVersion(char *out, unsigned size) { return text(DRIVER, "nvmlSystemGetDriverVersion", out, size); }
nvmlReturn_t nvmlSystemGetNVMLVersion(char *out, unsigned size) { return text(DRIVER, "nvmlSystemGetNVMLVersion", out, size); }
nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *out) {
    NUMBERS(DRIVER, "nvmlSystemGetCudaDriverVersion");
    *out = (int)n[0];
    return SUCCESS;
}
nvmlReturn_t nvmlSystemGetProcessName(unsigned pid, char *out, unsigned size) {
    char name[64];
    snprintf(name, sizeof name, "nvmlSystemGetProcessName/%u", pid);
    return text(DRIVER, name, out, size);
}
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *out) {
    NUMBERS(DRIVER, "nvmlDeviceGetCount_v2");
    *out = (unsigned)n[0];
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *out) {
    char value[LONGEST];
    nvmlReturn_t status = say((int)index, value, "nvmlDeviceGetHandleByIndex_v2");
    if (status != SUCCESS && status != NOT_SUPPORTED) return status;
    *out = (nvmlDevice_t)(intptr_t)(index + 1);
    return SUCCESS;
}

/* Text, and one or two numbers. */
TEXT(nvmlDeviceGetName)
TEXT(nvmlDeviceGetUUID)
TEXT(nvmlDeviceGetVbiosVersion)
TEXT(nvmlDeviceGetInforomImageVersion)
ONE(nvmlDeviceGetVirtualizationMode, unsigned)
ONE(nvmlDeviceGetComputeMode, unsigned)
ONE(nvmlDeviceGetPersistenceMode, unsigned)
ONE(nvmlDeviceGetRetiredPagesPendingStatus, unsigned)
ONE(nvmlDeviceGetCurrentClocksEventReasons, u64)
ONE(nvmlDeviceGetPowerUsage, unsigned)
ONE(nvmlDeviceGetTotalEnergyConsumption, u64)
ONE(nvmlDeviceGetPowerManagementLimit, unsigned)
ONE(nvmlDeviceGetEnforcedPowerLimit, unsigned)
ONE(nvmlDeviceGetPowerManagementDefaultLimit, unsigned)
ONE(nvmlDeviceGetCurrPcieLinkGeneration, unsigned)
ONE(nvmlDeviceGetMaxPcieLinkGeneration, unsigned)
ONE(nvmlDeviceGetGpuMaxPcieLinkGeneration, unsigned)
ONE(nvmlDeviceGetCurrPcieLinkWidth, unsigned)
ONE(nvmlDeviceGetMaxPcieLinkWidth, unsigned)
ONE(nvmlDeviceGetPcieReplayCounter, unsigned)
TWO(nvmlDeviceGetEccMode)
TWO(nvmlDeviceGetMigMode)
TWO(nvmlDeviceGetPowerManagementLimitConstraints)
ONE_OF(nvmlDeviceGetTemperature, unsigned)
ONE_OF(nvmlDeviceGetTemperatureThreshold, unsigned)
ONE_OF(nvmlDeviceGetClockInfo, unsigned)
ONE_OF(nvmlDeviceGetMaxClockInfo, unsigned)
ONE_OF(nvmlDeviceGetApplicationsClock, unsigned)
ONE_OF(nvmlDeviceGetDefaultApplicationsClock, unsigned)
ONE_OF(nvmlDeviceGetNvLinkState, unsigned)
ONE_OF(nvmlDeviceGetNvLinkRemoteDeviceType, unsigned)

nvmlReturn_t nvmlDeviceValidateInforom(nvmlDevice_t d) {
    char value[LONGEST];
    return say(number_of(d), value, "nvmlDeviceValidateInforom");
}
nvmlReturn_t nvmlDeviceGetNvLinkErrorCounter(nvmlDevice_t d, unsigned link, unsigned counter, u64 *out) {
    NUMBERS(number_of(d), "nvmlDeviceGetNvLinkErrorCounter/%u/%u", link, counter);
    *out = n[0];
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t d, unsigned kind, unsigned since, u64 *out) {
    NUMBERS(number_of(d), "nvmlDeviceGetTotalEccErrors/%u/%u", kind, since);
    *out = n[0];
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetMemoryErrorCounter(nvmlDevice_t d, unsigned kind, unsigned since, unsigned place, u64 *out) {
    NUMBERS(number_of(d), "nvmlDeviceGetMemoryErrorCounter/%u/%u/%u", kind, since, place);
    *out = n[0];
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetRetiredPages(nvmlDevice_t d, unsigned cause, unsigned *count, u64 *pages) {
    NUMBERS(number_of(d), "nvmlDeviceGetRetiredPages/%u", cause);
    unsigned room = *count;
    *count = (unsigned)n[0];
    if (room < *count || !pages) return *count ? INSUFFICIENT_SIZE : SUCCESS;
    for (unsigned i = 0; i < *count; i++) pages[i] = 0x1000 * (i + 1);
    return SUCCESS;
}
nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t d, unsigned *corr, unsigned *unc, unsigned *pending, unsigned *failed) {
    NUMBERS(number_of(d), "nvmlDeviceGetRemappedRows");
    *corr = (unsigned)n[0], *unc = (unsigned)n[1], *pending = (unsigned)n[2], *failed = (unsigned)n[3];
    return SUCCESS;
}

/* Structures. */
struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; };
nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t d, struct pci *out) {
    memset(out, 0, sizeof *out);
    return text(number_of(d), "nvmlDeviceGetPciInfo_v3", out->bus_id, sizeof out->bus_id);
}
struct versioned { unsigned version; };
#define OF_VERSION(out, wanted) if (((struct versioned *)(out))->version != (wanted)) return VERSION_MISMATCH

struct sram { unsigned version; u64 counts[11]; unsigned exceeded; };
nvmlReturn_t nvmlDeviceGetSramEccErrorStatus(nvmlDevice_t d, struct sram *out) {
    OF_VERSION(out, sizeof *out | 1 << 24);
    NUMBERS(number_of(d), "nvmlDeviceGetSramEccErrorStatus");
    out->exceeded = (unsigned)n[0];
    return SUCCESS;
}
struct histogram { unsigned bins[5]; };
nvmlReturn_t nvmlDeviceGetRowRemapperHistogram(nvmlDevice_t d, struct histogram *out) {
    NUMBERS(number_of(d), "nvmlDeviceGetRowRemapperHistogram");
    for (int i = 0; i < 5; i++) out->bins[i] = (unsigned)n[i];
    return SUCCESS;
}
struct repair { unsigned version, channel, tpc; };
nvmlReturn_t nvmlDeviceGetRepairStatus(nvmlDevice_t d, struct repair *out) {
    OF_VERSION(out, sizeof *out | 1 << 24);
    NUMBERS(number_of(d), "nvmlDeviceGetRepairStatus");
    out->channel = (unsigned)n[0], out->tpc = (unsigned)n[1];
    return SUCCESS;
}
struct unrepairable { unsigned version, flag; };
nvmlReturn_t nvmlDeviceGetUnrepairableMemoryFlag_v1(nvmlDevice_t d, struct unrepairable *out) {
    NUMBERS(number_of(d), "nvmlDeviceGetUnrepairableMemoryFlag_v1");
    out->flag = (unsigned)n[0];
    return SUCCESS;
}
struct margin { unsigned version; int margin; };
nvmlReturn_t nvmlDeviceGetMarginTemperature(nvmlDevice_t d, struct margin *out) {
    OF_VERSION(out, sizeof *out | 1 << 24);
    NUMBERS(number_of(d), "nvmlDeviceGetMarginTemperature");
    out->margin = (int)n[0];
    return SUCCESS;
}
struct violation { u64 reference, ns; };
nvmlReturn_t nvmlDeviceGetViolationStatus(nvmlDevice_t d, unsigned policy, struct violation *out) {
    NUMBERS(number_of(d), "nvmlDeviceGetViolationStatus/%u", policy);
    out->reference = 0, out->ns = n[0];
    return SUCCESS;
}
struct memory { unsigned version; u64 total, reserved, free, used; };
nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t d, struct memory *out) {
    OF_VERSION(out, sizeof *out | 2 << 24);
    NUMBERS(number_of(d), "nvmlDeviceGetMemoryInfo_v2");
    out->total = n[0] << 20, out->reserved = n[1] << 20, out->used = n[2] << 20;
    out->free = out->total - out->reserved - out->used;
    return SUCCESS;
}
struct utilization { unsigned gpu, memory; };
nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t d, struct utilization *out) {
    NUMBERS(number_of(d), "nvmlDeviceGetUtilizationRates");
    out->gpu = (unsigned)n[0], out->memory = (unsigned)n[1];
    return SUCCESS;
}

/* "pid MiB pid MiB ..." */
struct process { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; };
static nvmlReturn_t processes(nvmlDevice_t d, const char *name, unsigned *count, struct process *out) {
    NUMBERS(number_of(d), "%s", name);
    unsigned found = 0, room = *count;
    while (found < 8 && n[2 * found]) found++;
    *count = found;
    if (room < found) return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < found; i++) out[i] = (struct process){(unsigned)n[2 * i], n[2 * i + 1] << 20, ~0u, ~0u};
    return SUCCESS;
}
#define PROCESSES(name) \
    nvmlReturn_t name(nvmlDevice_t d, unsigned *count, struct process *out) { return processes(d, #name, count, out); }
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3)
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3)
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3)

/* "state status clique mask", and the cluster's bytes; the third version is not taken, as by older drivers. */
struct fabric { unsigned version; uint8_t cluster[16]; unsigned status, clique, state, mask; };
nvmlReturn_t nvmlDeviceGetGpuFabricInfoV(nvmlDevice_t d, struct fabric *out) {
    OF_VERSION(out, sizeof *out | 2 << 24);
    NUMBERS(number_of(d), "nvmlDeviceGetGpuFabricInfoV");
    out->state = (unsigned)n[0], out->status = (unsigned)n[1], out->clique = (unsigned)n[2], out->mask = (unsigned)n[3];
    for (int i = 0; i < 16; i++) out->cluster[i] = (uint8_t)n[4 + i];
    return SUCCESS;
}

/* "number" is an unsigned one, "-number" a signed one. */
struct field {
    uint32_t id, scope;
    int64_t timestamp, latency;
    unsigned type, status;
    union { double real; unsigned plain; u64 large; int small; } value;
};
nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t d, int count, struct field *fields) {
    char value[LONGEST];
    nvmlReturn_t several = say(number_of(d), value, "nvmlDeviceGetFieldValues/several");
    if (count > 1 && several != NOT_SUPPORTED) return several;
    for (int i = 0; i < count; i++) {
        u64 n[MOST];
        struct field *field = fields + i;
        nvmlReturn_t status = say(number_of(d), value, "nvmlDeviceGetFieldValues/%u/%u", field->id, field->scope);
        if (status == NOT_SUPPORTED) status = say(number_of(d), value, "nvmlDeviceGetFieldValues/%u", field->id);
        field->status = (unsigned)status;
        if (status != SUCCESS) continue;
        numbers(value, n);
        if (value[0] == '-')
            field->type = 5, field->value.small = (int)n[0];
        else
            field->type = 3, field->value.large = n[0];
    }
    return SUCCESS;
}
