package win32

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"memfs/mm/heap"
	"memfs/mm/process"
)

// The Heap API, Global and Local memory, and the C runtime's malloc, of package heap. A call that leaves the last error
// alone has not failed for this language, whatever it returns: HeapValidate's FALSE is OK 0x0. One that sets it has, unless
// its result says otherwise.
//
// ~N before a call makes it thread N's, which CreateThread has returned: a HeapLock belongs to a thread. All calls without
// it are the main thread's, whichever program they come from.

func init() {
	RegisterConstants(map[string]uint64{
		"HEAP_NO_SERIALIZE": heap.NoSerialize, "HEAP_GROWABLE": heap.Growable,
		"HEAP_GENERATE_EXCEPTIONS": heap.GenerateExceptions, "HEAP_ZERO_MEMORY": heap.ZeroMemory,
		"HEAP_REALLOC_IN_PLACE_ONLY": heap.ReallocInPlaceOnly, "HEAP_TAIL_CHECKING_ENABLED": heap.TailChecking,
		"HEAP_FREE_CHECKING_ENABLED": heap.FreeChecking, "HEAP_DISABLE_COALESCE_ON_FREE": 0x80,
		"HEAP_CREATE_ENABLE_EXECUTE": heap.CreateEnableExecute,

		"PROCESS_HEAP_REGION": heap.EntryRegion, "PROCESS_HEAP_UNCOMMITTED_RANGE": heap.EntryUncommittedRange,
		"PROCESS_HEAP_ENTRY_BUSY": heap.EntryBusy, "PROCESS_HEAP_ENTRY_MOVEABLE": heap.EntryMoveable,
		"PROCESS_HEAP_ENTRY_DDESHARE": 0x20, "PROCESS_HEAP_SEG_ALLOC": 0x8, "FIRST": walkFirst, "NEXT": walkNext,

		"HeapCompatibilityInformation":      heap.HeapCompatibilityInformation,
		"HeapEnableTerminationOnCorruption": heap.HeapEnableTerminationOnCorruption,
		"HeapOptimizeResources":             heap.HeapOptimizeResources,

		"GMEM_FIXED": 0, "GMEM_MOVEABLE": 0x2, "GMEM_NOCOMPACT": 0x10, "GMEM_NODISCARD": 0x20, "GMEM_ZEROINIT": 0x40,
		"GMEM_MODIFY": 0x80, "GMEM_DISCARDABLE": 0x100, "GMEM_NOT_BANKED": 0x1000, "GMEM_LOWER": 0x1000,
		"GMEM_DDESHARE": 0x2000, "GMEM_SHARE": 0x2000, "GMEM_NOTIFY": 0x4000, "GHND": heap.GHND, "GPTR": heap.GPTR,
		"GMEM_LOCKCOUNT": 0xFF, "GMEM_DISCARDED": 0x4000, "GMEM_INVALID_HANDLE": 0x8000, "GMEM_VALID_FLAGS": 0x7F72,

		"LMEM_FIXED": 0, "LMEM_MOVEABLE": 0x2, "LMEM_NOCOMPACT": 0x10, "LMEM_NODISCARD": 0x20, "LMEM_ZEROINIT": 0x40,
		"LMEM_MODIFY": 0x80, "LMEM_DISCARDABLE": 0xF00, "LHND": heap.LHND, "LPTR": heap.LPTR, "NONZEROLPTR": 0,
		"NONZEROLHND": 2, "LMEM_LOCKCOUNT": 0xFF, "LMEM_DISCARDED": 0x4000, "LMEM_INVALID_HANDLE": 0x8000,
		"LMEM_VALID_FLAGS": 0xF72,
	})
	Register(
		Row{Name: "GetProcessHeap", Help: "the default heap", Do: getProcessHeap},
		Row{Name: "GetProcessHeaps", Params: "Capacity?", Do: getProcessHeaps, Help: "how many heaps there are; First= is the default heap"},
		Row{Name: "HeapCreate", Params: "Options InitialSize MaximumSize", Do: heapCreate, Help: "make a heap; with a maximum it does not grow"},
		Row{Name: "HeapDestroy", Params: "Heap", Do: heapDestroy, Help: "give all of a heap back"},
		Row{Name: "HeapAlloc", Params: "Heap Flags Bytes", Do: heapAlloc, Help: "take a block; returns its address"},
		Row{Name: "HeapReAlloc", Params: "Heap Flags Mem Bytes", Do: heapReAlloc, Help: "change a block's size"},
		Row{Name: "HeapFree", Params: "Heap Flags Mem", Do: heapFree, Help: "give a block back"},
		Row{Name: "HeapSize", Params: "Heap Flags Mem", Do: heapSize, Help: "a block's size as it was asked for"},
		Row{Name: "HeapValidate", Params: "Heap Flags Mem", Do: heapValidate, Help: "whether a block, or for 0 the heap, is whole"},
		Row{Name: "HeapCompact", Params: "Heap Flags", Do: heapCompact, Help: "give free pages back; returns the largest free block"},
		Row{Name: "HeapLock", Params: "Heap", Do: heapLock, Help: "keep other threads out of a heap"},
		Row{Name: "HeapUnlock", Params: "Heap", Do: heapUnlock, Help: "let them in again"},
		Row{Name: "HeapWalk", Params: "Heap Which", Do: heapWalk, Help: "FIRST or NEXT of a heap's regions, blocks and ranges"},
		Row{Name: "HeapQueryInformation", Params: "Heap Class Length?", Do: heapQuery, Help: "HeapCompatibilityInformation: 0 standard, 2 low-fragmentation"},
		Row{Name: "HeapSetInformation", Params: "Heap Class Value? Length?", Do: heapSet,
			Help: "low-fragmentation heap; termination on corruption"},
		Row{Name: "HeapSummary", Params: "Heap Flags Length?", Do: heapSummary, Help: "a heap's bytes"},

		Row{Name: "malloc", Params: "Bytes", Help: "a block of the default heap",
			Do: pointer(func(t *heap.Thread, c *Call) (uint64, error) { return t.Malloc(c.Number("Bytes")) })},
		Row{Name: "calloc", Params: "Count Bytes", Help: "so many times so many bytes of zeros",
			Do: pointer(func(t *heap.Thread, c *Call) (uint64, error) { return t.Calloc(c.size("Count"), c.size("Bytes")) })},
		Row{Name: "realloc", Params: "Mem Bytes", Do: cRealloc, Help: "change a block's size; to 0 frees it"},
		Row{Name: "free", Params: "Mem", Do: cFree, Help: "give it back"},
		Row{Name: "_msize", Params: "Mem", Do: cSize, Help: "its size"},
	)
	registerGlobal("Global", globalMemory)
	registerGlobal("Local", localMemory)
}

// heapError is an exception that a heap function raises.
type heapError struct {
	code   uint32
	at     uint64
	reason string
}

func (e *heapError) Error() string {
	return fmt.Sprintf("0x%08X raise 0x%x (%s)", e.code, e.at, e.reason)
}

// onHeap runs f as a call of the calling thread on the process's heaps.
func (c *Call) onHeap(f func(t *heap.Thread) error) error {
	t, done, err := c.Process.HeapThread(c.thread)
	if err != nil {
		return err
	}
	defer done()
	err = f(t)
	var x *heap.Exception
	switch {
	case errors.Is(err, process.ErrDeadlock):
		return &heapError{process.StatusPossibleDeadlock, 0, err.Error()}
	case errors.As(err, &x):
		if x.Terminate {
			c.Process.Terminate(x.Status)
			return &heapError{x.Status, x.Address, x.Reason + "; the process has been terminated"}
		}
		return &heapError{x.Status, x.Address, x.Reason}
	}
	return err
}

// returned is the end of a heap call with a result: failed says that the result alone tells that it failed. What it
// leaves as last error it sets either way.
func (c *Call) returned(result uint64, failed bool, err error) error {
	c.Return(c.word(result))
	var e *heap.Error
	switch {
	case !errors.As(err, &e):
		return err
	case failed:
		c.SetHex("Result", c.result)
		return process.Error(e.Code)
	}
	c.leave(process.Error(e.Code))
	return nil
}

// word is a value in a register of the process's.
func (c *Call) word(n uint64) uint64 {
	if c.Process.Image().Arch.Pointer() == 4 && n > 1<<63 {
		return uint64(uint32(n)) // (SIZE_T)-1, and handles as the caller has written them
	}
	return n
}

// size is an argument of the process's size_t: on a 32-bit machine, ~0 is 2³²−1.
func (c *Call) size(name string) uint64 { return c.word(c.Number(name)) }

// pointer is a call whose result is an address or a handle, NULL if it failed.
func pointer(f func(t *heap.Thread, c *Call) (uint64, error)) func(c *Call) error {
	return func(c *Call) error {
		return c.onHeap(func(t *heap.Thread) error {
			p, err := f(t, c)
			return c.returned(p, p == 0, err)
		})
	}
}

// boolean is a call whose result is a BOOL.
func boolean(f func(t *heap.Thread, c *Call) (bool, error)) func(c *Call) error {
	return func(c *Call) error {
		return c.onHeap(func(t *heap.Thread) error {
			ok, err := f(t, c)
			n := uint64(0)
			if ok {
				n = 1
			}
			return c.returned(n, !ok, err)
		})
	}
}

// flags32 is a DWORD of flags.
func (c *Call) flags32(name string) uint32 { return uint32(c.Number(name)) }

var getProcessHeap = pointer(func(t *heap.Thread, c *Call) (uint64, error) { return t.GetProcessHeap(), nil })

func getProcessHeaps(c *Call) error {
	return c.onHeap(func(t *heap.Thread) error {
		handles := t.GetProcessHeaps()
		c.Return(uint64(len(handles)))
		c.SetHex("First", handles[0])
		list := handles
		if c.Given("Capacity") {
			list = handles[:min(uint64(len(handles)), c.Number("Capacity"))]
		}
		if len(list) > 0 {
			var s []string
			for _, h := range list[:min(len(list), maxHeapsListed)] {
				s = append(s, fmt.Sprintf("0x%x", h))
			}
			c.Set("ProcessHeaps", strings.Join(s, ","))
		}
		return nil
	})
}

// maxHeapsListed is how many heaps a reply lists.
const maxHeapsListed = 1024

func heapCreate(c *Call) error {
	return c.onHeap(func(t *heap.Thread) error {
		h, err := c.Process.HeapCreate(t, c.flags32("Options"), c.size("InitialSize"), c.size("MaximumSize"))
		return c.returned(h, h == 0, err)
	})
}

var heapDestroy = boolean(func(t *heap.Thread, c *Call) (bool, error) {
	ok, err := c.Process.HeapDestroy(t, c.Number("Heap"))
	c.walks().drop(c.Number("Heap"))
	return ok, err
})

var heapAlloc = pointer(func(t *heap.Thread, c *Call) (uint64, error) {
	return t.HeapAlloc(c.Number("Heap"), c.flags32("Flags"), c.size("Bytes"))
})

var heapReAlloc = pointer(func(t *heap.Thread, c *Call) (uint64, error) {
	return t.HeapReAlloc(c.Number("Heap"), c.flags32("Flags"), c.Number("Mem"), c.size("Bytes"))
})

var heapFree = boolean(func(t *heap.Thread, c *Call) (bool, error) {
	return t.HeapFree(c.Number("Heap"), c.flags32("Flags"), c.Number("Mem"))
})

func heapSize(c *Call) error {
	return c.onHeap(func(t *heap.Thread) error {
		n, err := t.HeapSize(c.Number("Heap"), c.flags32("Flags"), c.Number("Mem"))
		return c.returned(n, n == heap.InvalidSize, err)
	})
}

var heapValidate = boolean(func(t *heap.Thread, c *Call) (bool, error) {
	return t.HeapValidate(c.Number("Heap"), c.flags32("Flags"), c.Number("Mem"))
})

func heapCompact(c *Call) error {
	return c.onHeap(func(t *heap.Thread) error {
		n, err := t.HeapCompact(c.Number("Heap"), c.flags32("Flags"))
		return c.returned(n, n == 0, err)
	})
}

var heapLock = boolean(func(t *heap.Thread, c *Call) (bool, error) { return t.HeapLock(c.Number("Heap")) })

var heapUnlock = boolean(func(t *heap.Thread, c *Call) (bool, error) { return t.HeapUnlock(c.Number("Heap")) })

// What HeapWalk takes instead of a PROCESS_HEAP_ENTRY: the first entry, or the one behind the last that it gave.
const (
	walkFirst = 0
	walkNext  = 1
)

// walkKey is the key of a process's walks.
type walkKey struct{}

// heapWalks are the walks under way, one a heap.
type heapWalks struct {
	mu sync.Mutex
	// +checklocks:mu
	at map[uint64]heap.ProcessHeapEntry
}

func (c *Call) walks() *heapWalks {
	return c.Value(walkKey{}, func() any { return &heapWalks{at: make(map[uint64]heap.ProcessHeapEntry)} }).(*heapWalks)
}

func (w *heapWalks) drop(heap uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.at, heap)
}

func heapWalk(c *Call) error {
	handle, which := c.Number("Heap"), c.Number("Which")
	if which > walkNext {
		return syntaxf("HeapWalk takes FIRST or NEXT")
	}
	return c.onHeap(func(t *heap.Thread) error {
		w := c.walks()
		w.mu.Lock()
		defer w.mu.Unlock()
		var e heap.ProcessHeapEntry
		if which == walkNext {
			e = w.at[handle]
		}
		ok, err := t.HeapWalk(handle, &e)
		if !ok {
			delete(w.at, handle)
			return c.returned(0, true, err)
		}
		w.at[handle] = e
		c.setEntry(&e)
		return c.returned(1, false, err)
	})
}

func (c *Call) setEntry(e *heap.ProcessHeapEntry) {
	c.Set("wFlags", entryFlags(e.Flags))
	c.SetHex("lpData", e.Data)
	c.SetHex("cbData", e.Size)
	c.Set("cbOverhead", e.Overhead)
	c.Set("iRegionIndex", e.RegionIndex)
	switch {
	case e.Flags&heap.EntryRegion != 0:
		c.SetHex("dwCommittedSize", e.Committed)
		c.SetHex("dwUnCommittedSize", e.Uncommitted)
		c.SetHex("lpFirstBlock", e.FirstBlock)
		c.SetHex("lpLastBlock", e.LastBlock)
	case e.Flags&heap.EntryMoveable != 0:
		c.SetHex("hMem", e.Mem)
	}
}

func entryFlags(flags uint16) string {
	var s []string
	for _, f := range []struct {
		bit  uint16
		name string
	}{{heap.EntryRegion, "PROCESS_HEAP_REGION"}, {heap.EntryUncommittedRange, "PROCESS_HEAP_UNCOMMITTED_RANGE"},
		{heap.EntryBusy, "PROCESS_HEAP_ENTRY_BUSY"}, {heap.EntryMoveable, "PROCESS_HEAP_ENTRY_MOVEABLE"}} {
		if flags&f.bit != 0 {
			s = append(s, f.name)
		}
	}
	if len(s) == 0 {
		return "0"
	}
	return strings.Join(s, "|")
}

func heapQuery(c *Call) error {
	size := uint64(4)
	if c.Given("Length") {
		size = c.Number("Length")
	}
	if c.Null() {
		size = 0
	}
	return c.onHeap(func(t *heap.Thread) error {
		value, length, err := t.HeapQueryInformation(c.Number("Heap"), c.flags32("Class"), size)
		if err == nil {
			c.Set("Value", value)
		}
		if length > 0 {
			c.Set("ReturnLength", length)
		}
		n := uint64(0)
		if err == nil {
			n = 1
		}
		return c.returned(n, err != nil, err)
	})
}

var heapSet = boolean(func(t *heap.Thread, c *Call) (bool, error) {
	if c.Given("Length") && c.Number("Length") < 4 && c.Number("Class") == heap.HeapCompatibilityInformation {
		return false, &heap.Error{Code: uint32(process.InsufficientBuffer)}
	}
	return t.HeapSetInformation(c.Number("Heap"), c.flags32("Class"), c.flags32("Value"))
})

func heapSummary(c *Call) error {
	size := uint64(5 * c.Process.Image().Arch.Pointer())
	if c.Given("Length") {
		size = c.Number("Length")
	}
	if c.Null() {
		return process.InvalidParameter
	}
	return c.onHeap(func(t *heap.Thread) error {
		s, err := t.HeapSummary(c.Number("Heap"), c.flags32("Flags"), size)
		if err != nil {
			return c.returned(0, true, err)
		}
		c.Set("cb", size)
		c.SetHex("cbAllocated", s.Allocated)
		c.SetHex("cbCommitted", s.Committed)
		c.SetHex("cbReserved", s.Reserved)
		c.SetHex("cbMaxReserve", s.MaxReserve)
		return c.returned(1, false, nil)
	})
}

// --- the C runtime -------------------------------------------------------------------------------------------------------

func cRealloc(c *Call) error {
	return c.onHeap(func(t *heap.Thread) error {
		p, err := t.Realloc(c.Number("Mem"), c.size("Bytes"))
		return c.returned(p, p == 0 && c.size("Bytes") != 0, err)
	})
}

func cFree(c *Call) error {
	return c.onHeap(func(t *heap.Thread) error { return c.returned(0, true, t.Free(c.Number("Mem"))) })
}

func cSize(c *Call) error {
	return c.onHeap(func(t *heap.Thread) error {
		n, err := t.MSize(c.Number("Mem"))
		return c.returned(n, n == heap.InvalidSize, err)
	})
}

// --- Global and Local memory ---------------------------------------------------------------------------------------------

// movable is the calls of one of the two families.
type movable struct {
	alloc    func(t *heap.Thread, flags uint32, size uint64) (uint64, error)
	realloc  func(t *heap.Thread, mem, size uint64, flags uint32) (uint64, error)
	free     func(t *heap.Thread, mem uint64) (uint64, error)
	size     func(t *heap.Thread, mem uint64) (uint64, error)
	flags    func(t *heap.Thread, mem uint64) (uint32, error)
	lock     func(t *heap.Thread, mem uint64) (uint64, error)
	unlock   func(t *heap.Thread, mem uint64) (bool, error)
	handleOf func(t *heap.Thread, p uint64) (uint64, error)
	discard  func(t *heap.Thread, mem uint64) (uint64, error)
}

var globalMemory = &movable{
	(*heap.Thread).GlobalAlloc, (*heap.Thread).GlobalReAlloc, (*heap.Thread).GlobalFree, (*heap.Thread).GlobalSize,
	(*heap.Thread).GlobalFlags, (*heap.Thread).GlobalLock, (*heap.Thread).GlobalUnlock, (*heap.Thread).GlobalHandle,
	(*heap.Thread).GlobalDiscard,
}

var localMemory = &movable{
	(*heap.Thread).LocalAlloc, (*heap.Thread).LocalReAlloc, (*heap.Thread).LocalFree, (*heap.Thread).LocalSize,
	(*heap.Thread).LocalFlags, (*heap.Thread).LocalLock, (*heap.Thread).LocalUnlock, (*heap.Thread).LocalHandle,
	(*heap.Thread).LocalDiscard,
}

func registerGlobal(family string, m *movable) {
	Register(
		Row{Name: family + "Alloc", Params: "Flags Bytes", Help: "take a block of the default heap: its address, or if movable a handle",
			Do: pointer(func(t *heap.Thread, c *Call) (uint64, error) { return m.alloc(t, c.flags32("Flags"), c.size("Bytes")) })},
		Row{Name: family + "ReAlloc", Params: "Mem Bytes Flags", Help: "change its size, or with MODIFY its attributes",
			Do: pointer(func(t *heap.Thread, c *Call) (uint64, error) {
				return m.realloc(t, c.Number("Mem"), c.size("Bytes"), c.flags32("Flags"))
			})},
		Row{Name: family + "Free", Params: "Mem", Help: "give it back; returns 0, or what was no block", Do: func(c *Call) error {
			return c.onHeap(func(t *heap.Thread) error {
				left, err := m.free(t, c.Number("Mem"))
				return c.returned(left, left != 0, err)
			})
		}},
		Row{Name: family + "Size", Params: "Mem", Help: "its size in bytes", Do: func(c *Call) error {
			return c.onHeap(func(t *heap.Thread) error {
				n, err := m.size(t, c.Number("Mem"))
				return c.returned(n, err != nil, err)
			})
		}},
		Row{Name: family + "Flags", Params: "Mem", Help: "its lock count and attributes", Do: func(c *Call) error {
			return c.onHeap(func(t *heap.Thread) error {
				n, err := m.flags(t, c.Number("Mem"))
				return c.returned(uint64(n), n == heap.MemInvalid, err)
			})
		}},
		Row{Name: family + "Lock", Params: "Mem", Help: "keep a movable block where it is; returns its address",
			Do: pointer(func(t *heap.Thread, c *Call) (uint64, error) { return m.lock(t, c.Number("Mem")) })},
		Row{Name: family + "Unlock", Params: "Mem", Help: "undo one lock; FALSE and no error with the last",
			Do: boolean(func(t *heap.Thread, c *Call) (bool, error) { return m.unlock(t, c.Number("Mem")) })},
		Row{Name: family + "Handle", Params: "Mem", Help: "the handle of the block at an address",
			Do: pointer(func(t *heap.Thread, c *Call) (uint64, error) { return m.handleOf(t, c.Number("Mem")) })},
		Row{Name: family + "Discard", Params: "Mem", Help: "drop its contents, keep its handle",
			Do: pointer(func(t *heap.Thread, c *Call) (uint64, error) { return m.discard(t, c.Number("Mem")) })},
	)
}

// setThread makes the call another thread's, which a number or the name of a variable says.
func (c *Call) setThread(thread string) error {
	if thread == "" {
		return nil
	}
	id, err := number(thread, func(name string) (uint64, bool) { return c.Session.variable(c.peer, name) })
	if err != nil {
		return err
	}
	for _, t := range c.Process.Threads() {
		if uint64(t.ID) == id {
			c.thread = t.ID
			return nil
		}
	}
	return syntaxf("there is no thread %s", thread)
}
