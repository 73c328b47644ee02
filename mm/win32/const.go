package win32

import "memfs/mm/process"

// constants are the names that arguments may use. A later registration may add names, never change one.
var constants = map[string]uint64{
	"PAGE_NOACCESS": 1, "PAGE_READONLY": 2, "PAGE_READWRITE": 4, "PAGE_WRITECOPY": 8,
	"PAGE_EXECUTE": 0x10, "PAGE_EXECUTE_READ": 0x20, "PAGE_EXECUTE_READWRITE": 0x40, "PAGE_EXECUTE_WRITECOPY": 0x80,
	"PAGE_GUARD": 0x100, "PAGE_NOCACHE": 0x200, "PAGE_WRITECOMBINE": 0x400,

	"MEM_COMMIT": 0x1000, "MEM_RESERVE": 0x2000, "MEM_REPLACE_PLACEHOLDER": 0x4000, "MEM_RESERVE_PLACEHOLDER": 0x40000,
	"MEM_RESET": 0x80000, "MEM_TOP_DOWN": 0x100000, "MEM_WRITE_WATCH": 0x200000, "MEM_PHYSICAL": 0x400000,
	"MEM_RESET_UNDO": 0x1000000, "MEM_LARGE_PAGES": 0x20000000, "AT_ROUND_TO_PAGE": 0x40000000,
	"MEM_COALESCE_PLACEHOLDERS": 1, "MEM_PRESERVE_PLACEHOLDER": 2, "MEM_DECOMMIT": 0x4000, "MEM_RELEASE": 0x8000,
	"MEM_FREE": 0x10000, "MEM_PRIVATE": 0x20000, "MEM_MAPPED": 0x40000, "MEM_IMAGE": 0x1000000,

	"MemoryRegionInfo": 1, "WRITE_WATCH_FLAG_RESET": 1,
	"ProcessExecuteFlags": processExecuteFlags, "MEM_EXECUTE_OPTION_DISABLE": process.ExecuteDisable,
	"MEM_EXECUTE_OPTION_ENABLE": process.ExecuteEnable, "MEM_EXECUTE_OPTION_PERMANENT": process.ExecutePermanent,
	"MEM_EXECUTE_OPTION_DISABLE_THUNK_EMULATION": process.ExecuteDisableThunkEmulation,
	"PROCESS_DEP_ENABLE":                         1, "PROCESS_DEP_DISABLE_ATL_THUNK_EMULATION": 2,
	"QUOTA_LIMITS_HARDWS_MIN_ENABLE": 1, "QUOTA_LIMITS_HARDWS_MIN_DISABLE": 2,
	"QUOTA_LIMITS_HARDWS_MAX_ENABLE": 4, "QUOTA_LIMITS_HARDWS_MAX_DISABLE": 8,
	"VmOfferPriorityVeryLow": 1, "VmOfferPriorityLow": 2, "VmOfferPriorityBelowNormal": 3, "VmOfferPriorityNormal": 4,
	"LowMemoryResourceNotification": 0, "HighMemoryResourceNotification": 1,

	"NUMA_NO_PREFERRED_NODE": 0xFFFFFFFF, "NO_ERROR": 0,

	"NULL": 0, "FALSE": 0, "TRUE": 1, "INVALID_HANDLE_VALUE": ^uint64(0), "SELF": ^uint64(0),
}

func init() {
	for name, e := range process.ErrorConstants() {
		constants[name] = uint64(e)
	}
}

// RegisterConstants adds names to what arguments may use. It panics on a name that there is with another value: two
// packages mean different things by it. It is called from init functions.
func RegisterConstants(names map[string]uint64) {
	for name, n := range names {
		if old, ok := constants[name]; ok && old != n {
			panic("win32: constant " + name + " registered with two values")
		}
		constants[name] = n
	}
}

// Constant is the value of a name that arguments may use.
func Constant(name string) (uint64, bool) {
	n, ok := constants[name]
	return n, ok
}
