/* SPDX-License-Identifier: Apache-2.0
 *
 * The functions of the CUDA driver that atoll_worker.cuda_driver calls, with the types of the driver's documentation,
 * to see that ctypes passes what they take: addresses whole, a handle by value, contexts pushed and popped in pairs.
 * Error 400 is an invalid handle or address there too. No device has any part in it.
 */
#include <stdio.h>
#include <string.h>

typedef int CUresult, CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct { char bytes[16]; } CUuuid;
typedef struct { char reserved[64]; } CUipcMemHandle;
typedef struct context { int device; } *CUcontext;
typedef struct stream *CUstream;

#define BASE 0x7F1234000000ULL
#define INVALID 400

static int initialized, depth;
static struct context contexts[2] = {{0}, {1}};
static CUcontext stack[8];

#define NEED(condition) do { if (!(condition)) return INVALID; } while (0)
#define NEED_CONTEXT(wanted) NEED(depth == 1 && stack[0]->device == (wanted))

CUresult cuInit(unsigned int flags) { NEED(flags == 0); initialized = 1; return 0; }

CUresult cuGetErrorName(CUresult error, const char **text) { *text = "CUDA_ERROR_TEST"; return 0; }

CUresult cuGetErrorString(CUresult error, const char **text)
{
    static char words[64];
    snprintf(words, sizeof words, "what error %d means", error);
    *text = words;
    return 0;
}

CUresult cuDeviceGetCount(int *count) { NEED(initialized); *count = 2; return 0; }

CUresult cuDeviceGet(CUdevice *device, int ordinal) { NEED(ordinal == 0 || ordinal == 1); *device = 10 + ordinal; return 0; }

CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device)
{
    int index;
    NEED(device == 10 || device == 11);
    for (index = 1; index < 16; index++) uuid->bytes[index] = (char)index;
    uuid->bytes[0] = (char)(device - 10);
    return 0;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
    NEED(device == 10 || device == 11);
    *context = &contexts[device - 10];
    return 0;
}

CUresult cuCtxPushCurrent_v2(CUcontext context) { NEED(depth < 8); stack[depth++] = context; return 0; }

CUresult cuCtxPopCurrent_v2(CUcontext *context) { NEED(depth > 0); *context = stack[--depth]; return 0; }

CUresult cuCtxSynchronize(void) { NEED_CONTEXT(0); return 0; }

CUresult cuStreamSynchronize(CUstream stream)
{
    NEED_CONTEXT(0);
    if (stream == (CUstream)3) return 3;
    NEED(stream == (CUstream)0x7F0000000001ULL);
    return 0;
}

CUresult cuPointerGetAttribute(void *data, int attribute, CUdeviceptr address)
{
    NEED(address >= BASE && address < BASE + 0x123456789ULL);
    switch (attribute) {
    case 8: *(unsigned int *)data = address == BASE + 1; return 0;
    case 9: *(int *)data = 1; return 0;
    case 10: *(unsigned int *)data = address == BASE; return 0;
    default: return INVALID;
    }
}

CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *size, CUdeviceptr address)
{
    NEED_CONTEXT(1);
    NEED(address >= BASE && address < BASE + 0x123456789ULL);
    *base = BASE;
    *size = 0x123456789ULL;
    return 0;
}

CUresult cuIpcGetMemHandle(CUipcMemHandle *handle, CUdeviceptr base)
{
    NEED_CONTEXT(1);
    NEED(base == BASE);
    memset(handle, 0, sizeof *handle);
    memcpy(handle, &base, sizeof base);
    handle->reserved[63] = 0x5A;
    return 0;
}

CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *address, CUipcMemHandle handle, unsigned int flags)
{
    NEED_CONTEXT(1);
    NEED(flags == 1);
    if (handle.reserved[0] == 8) return 208;
    memcpy(address, handle.reserved, sizeof *address);
    NEED(*address == BASE && handle.reserved[63] == 0x5A);
    *address += 0x1000000;
    return 0;
}

CUresult cuIpcCloseMemHandle(CUdeviceptr address) { NEED_CONTEXT(1); NEED(address == BASE + 0x1000000); return 0; }
