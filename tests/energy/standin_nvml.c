/* A libnvidia-ml.so.1 whose GPUs obey what is set on them, for tests of meters and power caps.
 *
 *   cc -shared -fPIC -O1 -Wl,-soname,libnvidia-ml.so.1 -o DIR/libnvidia-ml.so.1 standin_nvml.c -lm
 *   LD_LIBRARY_PATH=DIR STANDIN_NVML_STATE=FILE python ...
 *
 * A GPU draws what is demanded of it, but not more than the limit in force: power(t) = min(demand(t),
 * limit(t)), both step functions, so that the energy of any time is known exactly. What is set lives
 * in FILE, shared by all processes that map it, and outlives them as settings outlive a process on a
 * real driver. The first double of FILE is the time in seconds that everything is told at; below 0
 * it is the real time since the second double. So tests may play a minute in a moment.
 *
 *   STANDIN_NVML_DEMAND     for each GPU "second:watts,...", GPUs separated by ";"     ("0:70")
 *   STANDIN_NVML_RANGE_W    least, most and default limit ("100,300,300")
 *   STANDIN_NVML_CLOCKS     supported SM clocks in MHz ("1740,1500,1200,900")
 *   STANDIN_NVML_TICK_MS    energy counter and power change only so often (100)
 *   STANDIN_NVML_AVERAGE_MS window of the mean power that GetPowerUsage tells (1000)
 *   STANDIN_NVML_SETTLE_MS  a new limit is in force only so much later (0)
 *   STANDIN_NVML_ROOT       1: setters work; else they lack the permission
 *   STANDIN_NVML_DENY       index of the GPU whose setters fail with an unknown error, if any
 *   STANDIN_NVML_MIG        index of the GPU that is in MIG mode, if any
 *   STANDIN_NVML_NO_ENERGY  1: there is no energy counter
 *   STANDIN_NVML_LOG        file that gets one line for each setter called, allowed or not
 */
#include <fcntl.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6,
       INSUFFICIENT_SIZE = 7, UNKNOWN = 999 };
enum { MAX_GPUS = 16, MAX_STEPS = 4096, MAX_DEMANDS = 256 };

struct step { double at_s; unsigned limit_mw; };
struct gpu { unsigned num_steps, clock_mhz; struct step steps[MAX_STEPS]; };
struct state { double now_s, epoch_s; unsigned is_ready, padding; struct gpu gpus[MAX_GPUS]; };

static struct state *state;
static unsigned num_gpus, least_mw, most_mw, default_mw, clocks[64], num_clocks;
static double demand_at[MAX_GPUS][MAX_DEMANDS], demand_w[MAX_GPUS][MAX_DEMANDS];
static unsigned num_demands[MAX_GPUS];

static const char *setting(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value ? value : otherwise;
}

static double wall_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static double now_s(void) {
    return state->now_s >= 0 ? state->now_s : wall_s() - state->epoch_s;
}

static void read_demands(void) {
    char text[65536], *gpu_rest, *rest;
    snprintf(text, sizeof text, "%s", setting("STANDIN_NVML_DEMAND", "0:70"));
    for (char *one = strtok_r(text, ";", &gpu_rest); one && num_gpus < MAX_GPUS;
         one = strtok_r(NULL, ";", &gpu_rest), num_gpus++)
        for (char *pair = strtok_r(one, ",", &rest); pair; pair = strtok_r(NULL, ",", &rest)) {
            unsigned *n = &num_demands[num_gpus];
            if (*n < MAX_DEMANDS &&
                sscanf(pair, "%lf:%lf", &demand_at[num_gpus][*n], &demand_w[num_gpus][*n]) == 2)
                ++*n;
        }
}

static int open_state(void) {
    const char *path = getenv("STANDIN_NVML_STATE");
    int file = path ? open(path, O_RDWR | O_CREAT, 0600) : -1;
    if (file < 0 || ftruncate(file, sizeof *state)) return UNKNOWN;
    state = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (state == MAP_FAILED) return UNKNOWN;
    if (!state->is_ready) {
        if (state->epoch_s == 0) state->epoch_s = wall_s();
        for (unsigned i = 0; i < MAX_GPUS; i++) {
            state->gpus[i].steps[0] = (struct step){-1e9, default_mw};
            state->gpus[i].num_steps = 1;
        }
        state->is_ready = 1;
    }
    return SUCCESS;
}

static int begin(void) {
    static int is_begun;
    double least, most, usual;
    if (is_begun) return SUCCESS;
    if (sscanf(setting("STANDIN_NVML_RANGE_W", "100,300,300"), "%lf,%lf,%lf", &least, &most, &usual)
        != 3) return UNKNOWN;
    least_mw = (unsigned)(least * 1e3), most_mw = (unsigned)(most * 1e3);
    default_mw = (unsigned)(usual * 1e3);
    char text[1024], *rest;
    snprintf(text, sizeof text, "%s", setting("STANDIN_NVML_CLOCKS", "1740,1500,1200,900"));
    for (char *one = strtok_r(text, ",", &rest); one && num_clocks < 64;
         one = strtok_r(NULL, ",", &rest)) clocks[num_clocks++] = (unsigned)atoi(one);
    read_demands();
    is_begun = 1;
    return open_state();
}

static double limit_w(unsigned gpu, double at_s) {
    double settle_s = atof(setting("STANDIN_NVML_SETTLE_MS", "0")) / 1e3;
    double watts = 1e-3 * state->gpus[gpu].steps[0].limit_mw;
    for (unsigned i = 1; i < state->gpus[gpu].num_steps; i++)
        if (state->gpus[gpu].steps[i].at_s + settle_s <= at_s)
            watts = 1e-3 * state->gpus[gpu].steps[i].limit_mw;
    return watts;
}

static double power_w(unsigned gpu, double at_s) {
    double watts = num_demands[gpu] ? demand_w[gpu][0] : 0;
    for (unsigned i = 0; i < num_demands[gpu]; i++)
        if (demand_at[gpu][i] <= at_s) watts = demand_w[gpu][i];
    return fmin(watts, limit_w(gpu, at_s));
}

/* Joules from second 0 to `until`: the sum over the pieces between all changes of either function. */
static double energy_j(unsigned gpu, double until) {
    double settle_s = atof(setting("STANDIN_NVML_SETTLE_MS", "0")) / 1e3, joules = 0, from = 0;
    while (from < until) {
        double to = until;
        for (unsigned i = 0; i < num_demands[gpu]; i++)
            if (demand_at[gpu][i] > from) to = fmin(to, demand_at[gpu][i]);
        for (unsigned i = 1; i < state->gpus[gpu].num_steps; i++) {
            double at_s = state->gpus[gpu].steps[i].at_s + settle_s;
            if (at_s > from) to = fmin(to, at_s);
        }
        joules += power_w(gpu, from) * (to - from);
        from = to;
    }
    return joules;
}

static double tick_s(void) {
    double period_s = atof(setting("STANDIN_NVML_TICK_MS", "100")) / 1e3, now = now_s();
    return period_s > 0 ? floor(now / period_s + 1e-9) * period_s : now;
}

static double mean_w(unsigned gpu, double at_s) {
    double window_s = atof(setting("STANDIN_NVML_AVERAGE_MS", "1000")) / 1e3;
    double from = fmax(0, at_s - window_s);
    if (window_s <= 0 || at_s <= from) return power_w(gpu, at_s);
    return (energy_j(gpu, at_s) - energy_j(gpu, from)) / (at_s - from);
}

static unsigned number(void *device) { return (unsigned)((uintptr_t)device - 0x1000); }
static int is_index(const char *name, unsigned gpu) {
    const char *value = getenv(name);
    return value && *value && (unsigned)atoi(value) == gpu;
}

static int may_set(void *device, const char *what, unsigned value) {
    int result = atoi(setting("STANDIN_NVML_ROOT", "0")) ? SUCCESS : NO_PERMISSION;
    if (result == SUCCESS && is_index("STANDIN_NVML_DENY", number(device))) result = UNKNOWN;
    const char *path = getenv("STANDIN_NVML_LOG");
    FILE *log = path ? fopen(path, "a") : NULL;
    if (log) {
        fprintf(log, "%u %s %u %s\n", number(device), what, value, result ? "refused" : "done");
        fclose(log);
    }
    return result;
}

int nvmlInit_v2(void) { return begin(); }
int nvmlInitWithFlags(unsigned flags) { (void)flags; return begin(); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int result) {
    switch (result) {
    case SUCCESS: return "Success";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    default: return "Unknown Error";
    }
}
int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    snprintf(text, size, "580.00-standin");
    return SUCCESS;
}
int nvmlDeviceGetCount_v2(unsigned *count) { *count = num_gpus; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    if (index >= num_gpus) return INVALID_ARGUMENT;
    *device = (void *)(uintptr_t)(0x1000 + index);
    return SUCCESS;
}
int nvmlDeviceGetIndex(void *device, unsigned *index) { *index = number(device); return SUCCESS; }
int nvmlDeviceGetUUID(void *device, char *text, unsigned size) {
    snprintf(text, size, "GPU-5741d1a0-0000-0000-0000-%012x", number(device));
    return SUCCESS;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    char known[96];
    for (unsigned i = 0; i < num_gpus; i++) {
        nvmlDeviceGetHandleByIndex_v2(i, device);
        nvmlDeviceGetUUID(*device, known, sizeof known);
        if (!strcmp(known, uuid)) return SUCCESS;
    }
    return NOT_FOUND;
}
int nvmlDeviceGetName(void *device, char *text, unsigned size) {
    (void)device;
    snprintf(text, size, "NVIDIA A40");
    return SUCCESS;
}
int nvmlDeviceGetArchitecture(void *device, unsigned *value) {
    (void)device;
    *value = 7; /* Ampere */
    return SUCCESS;
}
int nvmlDeviceGetC2cModeInfoV(void *device, void *info) {
    (void)device, (void)info;
    return NOT_SUPPORTED;
}
int nvmlDeviceGetMigMode(void *device, unsigned *now, unsigned *pending) {
    *now = *pending = (unsigned)is_index("STANDIN_NVML_MIG", number(device));
    return SUCCESS;
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    if (atoi(setting("STANDIN_NVML_NO_ENERGY", "0"))) return NOT_SUPPORTED;
    *millijoules = (unsigned long long)(5e9 + 1e3 * energy_j(number(device), tick_s()));
    return SUCCESS;
}
int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) {
    *milliwatts = (unsigned)lround(1e3 * mean_w(number(device), tick_s()));
    return SUCCESS;
}
static unsigned set_limit_mw(void *device) {
    struct gpu *gpu = &state->gpus[number(device)];
    return gpu->steps[gpu->num_steps - 1].limit_mw;
}
int nvmlDeviceGetPowerManagementLimit(void *device, unsigned *milliwatts) {
    *milliwatts = set_limit_mw(device);
    return SUCCESS;
}
int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *milliwatts) {
    *milliwatts = set_limit_mw(device);
    return SUCCESS;
}
int nvmlDeviceGetPowerManagementDefaultLimit(void *device, unsigned *milliwatts) {
    (void)device;
    *milliwatts = default_mw;
    return SUCCESS;
}
int nvmlDeviceGetPowerManagementLimitConstraints(void *device, unsigned *least, unsigned *most) {
    (void)device;
    *least = least_mw, *most = most_mw;
    return SUCCESS;
}
int nvmlDeviceSetPowerManagementLimit(void *device, unsigned milliwatts) {
    int result = may_set(device, "power_limit_mw", milliwatts);
    struct gpu *gpu = &state->gpus[number(device)];
    if (result) return result;
    if (milliwatts < least_mw || milliwatts > most_mw || gpu->num_steps == MAX_STEPS)
        return INVALID_ARGUMENT;
    gpu->steps[gpu->num_steps] = (struct step){now_s(), milliwatts};
    gpu->num_steps++;
    return SUCCESS;
}
int nvmlDeviceSetGpuLockedClocks(void *device, unsigned least, unsigned most) {
    (void)least;
    int result = may_set(device, "lock_clocks_mhz", most);
    if (!result) state->gpus[number(device)].clock_mhz = most;
    return result;
}
int nvmlDeviceResetGpuLockedClocks(void *device) {
    int result = may_set(device, "reset_clocks", 0);
    if (!result) state->gpus[number(device)].clock_mhz = 0;
    return result;
}
static unsigned reach_mhz(void *device) {
    unsigned locked = state->gpus[number(device)].clock_mhz;
    return locked ? locked : clocks[0];
}
int nvmlDeviceGetClockInfo(void *device, unsigned type, unsigned *mhz) {
    *mhz = type == 2 ? 7251 : reach_mhz(device);
    return SUCCESS;
}
int nvmlDeviceGetMaxClockInfo(void *device, unsigned type, unsigned *mhz) {
    *mhz = type == 2 ? 7251 : reach_mhz(device);
    return SUCCESS;
}
int nvmlDeviceGetSupportedMemoryClocks(void *device, unsigned *count, unsigned *found) {
    (void)device;
    if (!found || *count < 1) { *count = 1; return INSUFFICIENT_SIZE; }
    *count = 1, found[0] = 7251;
    return SUCCESS;
}
int nvmlDeviceGetSupportedGraphicsClocks(void *device, unsigned memory, unsigned *count,
                                         unsigned *found) {
    (void)device, (void)memory;
    if (!found || *count < num_clocks) { *count = num_clocks; return INSUFFICIENT_SIZE; }
    *count = num_clocks;
    memcpy(found, clocks, num_clocks * sizeof *clocks);
    return SUCCESS;
}
int nvmlDeviceGetPersistenceMode(void *device, unsigned *mode) {
    (void)device;
    *mode = 1;
    return SUCCESS;
}

struct field { unsigned id, scope; long long at_us, latency_us; unsigned type; int result;
               union { double d; unsigned u; unsigned long long l; } value; };
int nvmlDeviceGetFieldValues(void *device, int count, struct field *fields) {
    for (int i = 0; i < count; i++) {
        struct field *one = &fields[i];
        double at_s = tick_s();
        one->result = SUCCESS, one->type = 1, one->value.l = 0;
        one->at_us = (long long)(wall_s() * 1e6);
        if (one->id == 186) one->value.u = (unsigned)lround(1e3 * power_w(number(device), at_s));
        else if (one->id == 185) one->value.u = (unsigned)lround(1e3 * mean_w(number(device), at_s));
        else one->result = NOT_SUPPORTED;
    }
    return SUCCESS;
}
