package win32

import (
	"encoding/hex"
	"fmt"
	"strings"

	"memfs/mm/process"
)

const (
	maxRead     = 256 << 10 // bytes that one line reads at most
	maxReadZero = 1 << 30   // bytes that one line looks at at most
	maxWatch    = 1 << 16   // addresses that one line returns at most
)

func init() {
	Register(
		Row{Name: "VirtualAlloc", Params: "Address Size AllocationType Protect", Do: virtualAlloc(self),
			Help: "reserve, commit or reset pages; returns the base"},
		Row{Name: "VirtualAllocEx", Params: "Process=process Address Size AllocationType Protect", Do: virtualAlloc(other),
			Help: "VirtualAlloc in another process"},
		Row{Name: "VirtualAlloc2", Params: "Process=process Address Size AllocationType Protect Extended...", Do: virtualAlloc2,
			Help: "VirtualAllocEx with placeholders"},
		Row{Name: "VirtualFree", Params: "Address Size FreeType", Do: virtualFree(self), Help: "decommit or release pages"},
		Row{Name: "VirtualFreeEx", Params: "Process=process Address Size FreeType", Do: virtualFree(other),
			Help: "VirtualFree in another process"},
		Row{Name: "VirtualProtect", Params: "Address Size NewProtect", Do: virtualProtect(self),
			Help: "change the protection of committed pages"},
		Row{Name: "VirtualProtectEx", Params: "Process=process Address Size NewProtect", Do: virtualProtect(other),
			Help: "VirtualProtect in another process"},
		Row{Name: "VirtualQuery", Params: "Address Length?", Do: virtualQuery(self), Help: "what the pages at an address are"},
		Row{Name: "VirtualQueryEx", Params: "Process=process Address Length?", Do: virtualQuery(other),
			Help: "VirtualQuery in another process"},
		Row{Name: "QueryVirtualMemoryInformation", Params: "Address Class?", Do: queryAllocation,
			Help: "the whole allocation at an address (MemoryRegionInfo)"},
		Row{Name: "VirtualLock", Params: "Address Size", Help: "keep pages in the working set",
			Do: func(c *Call) error { return c.done(c.Process.Lock(c.Number("Address"), c.Number("Size"))) }},
		Row{Name: "VirtualUnlock", Params: "Address Size", Help: "undo VirtualLock",
			Do: func(c *Call) error { return c.done(c.Process.Unlock(c.Number("Address"), c.Number("Size"))) }},
		Row{Name: "PrefetchVirtualMemory", Params: "NumberOfEntries AddressBytesFlags...", Do: prefetch,
			Help: "read pages back from the page file: count, address and bytes of each, flags"},
		Row{Name: "OfferVirtualMemory", Params: "Address Size Priority", ReturnsError: true,
			Help: "say that the contents may be dropped, and give up access",
			Do: func(c *Call) error {
				return c.Process.Offer(c.Number("Address"), c.Number("Size"), uint32(min(c.Number("Priority"), 1<<31)))
			}},
		Row{Name: "ReclaimVirtualMemory", Params: "Address Size", ReturnsError: true, Help: "take offered pages back",
			Do: func(c *Call) error { return c.Process.Reclaim(c.Number("Address"), c.Number("Size")) }},
		Row{Name: "DiscardVirtualMemory", Params: "Address Size", ReturnsError: true, Help: "drop the contents at once",
			Do: func(c *Call) error { return c.Process.Discard(c.Number("Address"), c.Number("Size")) }},
		Row{Name: "GetWriteWatch", Params: "Flags Address Size Capacity?", Do: getWriteWatch,
			Help: "which pages of a MEM_WRITE_WATCH allocation were written"},
		Row{Name: "ResetWriteWatch", Params: "Address Size", Help: "forget which pages were written",
			Do: func(c *Call) error { return c.Process.ResetWriteWatch(c.Number("Address"), c.Number("Size")) }},

		Row{Name: "Read", Params: "Address Length", Do: read, Help: "load bytes"},
		Row{Name: "ReadZero", Params: "Address Length", Do: readZero, Help: "load bytes that must all be zero"},
		Row{Name: "Write", Params: "Address Data=hex", Help: "store bytes",
			Do: func(c *Call) error { return c.Process.Write(c.Number("Address"), c.Bytes("Data")) }},
		Row{Name: "Execute", Params: "Address", Help: "fetch an instruction: checks and faults, runs nothing",
			Do: func(c *Call) error { return c.Process.Execute(c.Number("Address")) }},
		Row{Name: "ReadProcessMemory", Params: "Process=process Address Length", Do: readProcess,
			Help: "read another process's memory"},
		Row{Name: "WriteProcessMemory", Params: "Process=process Address Data=hex", Do: writeProcess,
			Help: "write another process's memory"},
		Row{Name: "FlushInstructionCache", Params: "AddressSize...", Help: "always succeeds: nothing is executed",
			Do: func(c *Call) error { return c.done(nil) }},

		Row{Name: "QueryWorkingSetEx", Params: "Address?", Do: queryWorkingSetEx, Help: "what the working set says of a page"},
		Row{Name: "QueryWorkingSet", Params: "Length?", Do: queryWorkingSet, Help: "the pages in the working set"},
		Row{Name: "EmptyWorkingSet", Params: "Process=process?", Do: emptyWorkingSet, Help: "trim every page that is not locked"},
		Row{Name: "GetProcessWorkingSetSize", Do: getWorkingSetSize, Help: "bounds of the working set in bytes"},
		Row{Name: "GetProcessWorkingSetSizeEx", Do: getWorkingSetSize, Help: "the same with its flags"},
		Row{Name: "SetProcessWorkingSetSize", Params: "MinimumWorkingSetSize MaximumWorkingSetSize", Do: setWorkingSetSize,
			Help: "set them; both −1 (~0) empties the working set"},
		Row{Name: "SetProcessWorkingSetSizeEx", Params: "MinimumWorkingSetSize MaximumWorkingSetSize Flags",
			Do: setWorkingSetSize, Help: "the same with QUOTA_LIMITS_ flags"},

		Row{Name: "GetSystemDEPPolicy", Help: "the boot policy: 0 AlwaysOff, 1 AlwaysOn, 2 OptIn, 3 OptOut",
			Do: func(c *Call) error { c.Return(uint64(c.Session.Machine.Policy())); return nil }},
		Row{Name: "GetProcessDEPPolicy", Params: "Process=process?", Do: getDEPPolicy, Help: "DEP state of a 32-bit process"},
		Row{Name: "SetProcessDEPPolicy", Params: "Flags", Do: setDEPPolicy, Help: "set it"},

		Row{Name: "NtQueryInformationProcess", Params: "ProcessInformationClass", Do: queryExecuteFlags,
			Help: "ProcessExecuteFlags: the DEP state in MEM_EXECUTE_OPTION_ flags"},
		Row{Name: "NtSetInformationProcess", Params: "ProcessInformationClass Flags", Do: setExecuteFlags, Help: "set it"},

		Row{Name: "GetLastError", Help: "what the last call that failed left",
			Do: func(c *Call) error { c.Return(uint64(c.Process.LastError())); return nil }},
		Row{Name: "SetLastError", Params: "Error", Help: "set it",
			Do: func(c *Call) error { c.leave(process.Error(c.Number("Error"))); return nil }},
		Row{Name: "GetCurrentProcessId", Help: "the process's number",
			Do: func(c *Call) error { c.Return(uint64(c.Process.ID())); return nil }},

		Row{Name: "CreateThread", Params: "StackSize?", Do: createThread, Help: "a thread, as far as memory goes: its stack"},
		Row{Name: "TerminateThread", Params: "ThreadId", Help: "end it and free its stack",
			Do: func(c *Call) error { return c.done(c.Process.EndThread(uint32(c.Number("ThreadId")))) }},

		Row{Name: "GlobalMemoryStatusEx", Params: "Length?", Do: globalMemoryStatus, Help: "the machine's memory"},
		Row{Name: "GlobalMemoryStatus", Do: globalMemoryStatusOld, Help: "the same, cut off at 2 GiB for old 32-bit programs"},
		Row{Name: "GetSystemInfo", Do: getSystemInfo, Help: "page size, granularity, bounds of the address space"},
		Row{Name: "GetLargePageMinimum", Help: "size of a large page",
			Do: func(c *Call) error { c.Return(process.LargePage); return nil }},
		Row{Name: "GetPhysicallyInstalledSystemMemory", Do: physicallyInstalled, Help: "the machine's memory in KiB"},
		Row{Name: "GetProcessMemoryInfo", Params: "Length?", Do: getMemoryInfo, Help: "the process's working set and commit"},
		Row{Name: "GetPerformanceInfo", Params: "Length?", Do: getPerformanceInfo, Help: "the machine's memory in pages"},
		Row{Name: "CreateMemoryResourceNotification", Params: "NotificationType", Do: createNotification,
			Help: "a handle that says when memory is low or plenty"},
		Row{Name: "QueryMemoryResourceNotification", Params: "Handle", Do: queryNotification, Help: "ask it"},

		Row{Name: "AllocateUserPhysicalPages", Params: "NumberOfPages", Do: allocatePhysical, Help: "frames of one's own (AWE)"},
		Row{Name: "FreeUserPhysicalPages", Params: "PageArray...", Do: freePhysical, Help: "give them back"},
		Row{Name: "MapUserPhysicalPages", Params: "Address NumberOfPages PageArray...", Do: mapPhysical,
			Help: "put them into a MEM_PHYSICAL region; without frames, take them out"},
	)
}

// done is the end of a call that returns a BOOL.
func (c *Call) done(err error) error {
	if err == nil {
		c.Return(1)
	}
	return err
}

// target says which process a call is about.
type target func(c *Call) (*process.Process, error)

func self(c *Call) (*process.Process, error)  { return c.Process, nil }
func other(c *Call) (*process.Process, error) { return c.Other("Process") }

// flags reads arguments of 32 bits; InvalidParameter if one has more.
func (c *Call) flags(names ...string) ([]uint32, error) {
	var all []uint32
	for _, name := range names {
		n, ok := c.Flags(name)
		if !ok {
			return nil, process.InvalidParameter
		}
		all = append(all, n)
	}
	return all, nil
}

func virtualAlloc(of target) func(c *Call) error {
	return func(c *Call) error {
		p, err := of(c)
		if err != nil {
			return err
		}
		f, err := c.flags("AllocationType", "Protect")
		if err != nil {
			return err
		}
		base, err := p.Alloc(c.Number("Address"), c.Number("Size"), f[0], process.Protection(f[1]))
		c.Return(base)
		return err
	}
}

func virtualAlloc2(c *Call) error {
	p, err := other(c)
	switch {
	case err != nil && c.Number("Process") == 0:
		p = c.Process // NULL means the caller here
	case err != nil:
		return err
	}
	f, err := c.flags("AllocationType", "Protect")
	if err != nil {
		return err
	}
	if err := c.noExtended(); err != nil {
		return err
	}
	base, err := p.Alloc2(c.Number("Address"), c.Number("Size"), f[0], process.Protection(f[1]))
	c.Return(base)
	return err
}

// noExtended refuses extended parameters, of which there are none: NULL and 0 is how a program says that.
func (c *Call) noExtended() error {
	for _, n := range c.Rest() {
		if n != 0 {
			return process.InvalidParameter
		}
	}
	return nil
}

func virtualFree(of target) func(c *Call) error {
	return func(c *Call) error {
		p, err := of(c)
		if err != nil {
			return err
		}
		f, err := c.flags("FreeType")
		if err != nil {
			return err
		}
		return c.done(p.Free(c.Number("Address"), c.Number("Size"), f[0]))
	}
}

func virtualProtect(of target) func(c *Call) error {
	return func(c *Call) error {
		p, err := of(c)
		if err != nil {
			return err
		}
		f, err := c.flags("NewProtect")
		switch {
		case err != nil:
			return err
		case c.Null():
			return process.NoAccessError
		}
		old, err := p.Protect(c.Number("Address"), c.Number("Size"), process.Protection(f[0]))
		if err == nil || old != 0 {
			c.Set("OldProtect", old)
		}
		return c.done(err)
	}
}

// queryLength is sizeof(MEMORY_BASIC_INFORMATION).
func queryLength(p *process.Process) uint64 {
	if p.Image().Arch.Pointer() == 4 {
		return 28
	}
	return 48
}

func virtualQuery(of target) func(c *Call) error {
	return func(c *Call) error {
		p, err := of(c)
		if err != nil {
			return err
		}
		if c.Null() {
			return process.NoAccessError
		}
		n := queryLength(c.Process)
		if c.Given("Length") && c.Number("Length") < n {
			return process.BadLength
		}
		r, err := p.Query(c.Number("Address"))
		if err != nil {
			return err
		}
		c.Return(n)
		c.SetHex("BaseAddress", r.BaseAddress)
		c.SetHex("AllocationBase", r.AllocationBase)
		c.Set("AllocationProtect", r.AllocationProtect)
		c.SetHex("RegionSize", r.RegionSize)
		c.Set("State", r.State)
		c.Set("Protect", r.Protect)
		c.Set("Type", r.Type)
		return nil
	}
}

func queryAllocation(c *Call) error {
	r, err := c.Process.Allocation(c.Number("Address"))
	if err != nil {
		return err
	}
	c.SetHex("AllocationBase", r.AllocationBase)
	c.Set("AllocationProtect", r.AllocationProtect)
	c.SetHex("RegionSize", r.RegionSize)
	c.Set("RegionType", r.Type)
	return c.done(nil)
}

func prefetch(c *Call) error {
	n, a := c.Number("NumberOfEntries"), c.Rest()
	if n > 0 && (len(a) <= 1 || len(a) == 2 && a[0] == 0) {
		return process.NoAccessError // the array is NULL
	}
	if n != uint64(len(a)/2) || len(a) > 0 && len(a)%2 == 0 {
		return process.InvalidParameter
	}
	var ranges []process.Range
	for i := 0; i+1 < len(a); i += 2 {
		ranges = append(ranges, process.Range{Address: a[i], Bytes: a[i+1]})
	}
	if len(a) > 0 && a[len(a)-1] != 0 {
		return process.InvalidParameter // there are no flags
	}
	return c.done(c.Process.Prefetch(ranges))
}

func getWriteWatch(c *Call) error {
	count := c.Number("Capacity")
	flags, ok := c.Flags("Flags")
	switch {
	case !c.Given("Capacity") && !c.Null():
		return syntaxf("GetWriteWatch wants Capacity")
	case c.Given("Capacity") && count == 0 || !ok:
		return process.InvalidParameter
	case c.Null(): // in the place of Capacity: what points to it
		return process.NoAccessError
	}
	pages, err := c.Process.GetWriteWatch(flags, c.Number("Address"), c.Number("Size"), int(min(count, maxWatch)))
	if err != nil {
		return err
	}
	c.Set("Count", len(pages))
	c.SetHex("Granularity", process.PageSize)
	if len(pages) > 0 {
		s := make([]string, len(pages))
		for i, a := range pages {
			s[i] = fmt.Sprintf("0x%x", a)
		}
		c.Set("Addresses", strings.Join(s, ","))
	}
	return nil
}

// length is how many bytes to read.
func (c *Call) length() ([]byte, error) {
	n := c.Number("Length")
	if n > maxRead {
		return nil, syntaxf("a line reads at most %d bytes", maxRead)
	}
	return make([]byte, n), nil
}

func read(c *Call) error {
	b, err := c.length()
	if err != nil {
		return err
	}
	if err := c.Process.Read(c.Number("Address"), b); err != nil {
		return err
	}
	c.Set("data", hex.EncodeToString(b))
	return nil
}

func readZero(c *Call) error {
	addr, left := c.Number("Address"), c.Number("Length")
	if left > maxReadZero {
		return syntaxf("a line looks at most at %d bytes", maxReadZero)
	}
	for b := make([]byte, min(left, 64<<10)); left > 0; {
		b = b[:min(left, uint64(len(b)))]
		if err := c.Process.Read(addr, b); err != nil {
			return err
		}
		for i, x := range b {
			if x != 0 {
				c.SetHex("Address", addr+uint64(i))
				return process.GenFailure
			}
		}
		addr, left = addr+uint64(len(b)), left-uint64(len(b))
	}
	return nil
}

func readProcess(c *Call) error {
	p, err := c.Other("Process")
	if err != nil {
		return err
	}
	b, err := c.length()
	if err != nil {
		return err
	}
	if err := p.ReadMemory(c.Number("Address"), b); err != nil {
		c.Set("BytesRead", 0)
		return err
	}
	c.Set("BytesRead", len(b))
	if len(b) > 0 {
		c.Set("data", hex.EncodeToString(b))
	}
	return c.done(nil)
}

func writeProcess(c *Call) error {
	p, err := c.Other("Process")
	if err != nil {
		return err
	}
	if err := p.WriteMemory(c.Number("Address"), c.Bytes("Data")); err != nil {
		c.Set("BytesWritten", 0)
		return err
	}
	c.Set("BytesWritten", len(c.Bytes("Data")))
	return c.done(nil)
}

func queryWorkingSetEx(c *Call) error {
	if !c.Given("Address") {
		return process.BadLength
	}
	f := c.Process.WorkingSetEx(c.Number("Address"))
	c.SetBool("Valid", f.Valid)
	c.Set("ShareCount", f.ShareCount)
	c.Set("Win32Protection", f.Protection)
	c.SetBool("Shared", f.Shared)
	c.Set("Node", 0)
	c.SetBool("Locked", f.Locked)
	c.SetBool("LargePage", f.Large)
	return c.done(nil)
}

func queryWorkingSet(c *Call) error {
	pages := c.Process.WorkingSet()
	need := uint64(len(pages)+1) * uint64(c.Process.Image().Arch.Pointer())
	c.Set("NumberOfEntries", len(pages))
	if c.Given("Length") && c.Number("Length") < need {
		return process.BadLength
	}
	for _, w := range pages {
		c.Set(fmt.Sprintf("0x%x", w.Address), w.Protection)
	}
	return c.done(nil)
}

func emptyWorkingSet(c *Call) error {
	p := c.Process
	if c.Given("Process") {
		var err error
		if p, err = c.Other("Process"); err != nil {
			return err
		}
	}
	p.EmptyWorkingSet()
	return c.done(nil)
}

func getWorkingSetSize(c *Call) error {
	low, high, flags := c.Process.WorkingSetSize()
	c.Set("MinimumWorkingSetSize", low)
	c.Set("MaximumWorkingSetSize", high)
	if c.row.name == "GetProcessWorkingSetSizeEx" {
		c.SetHex("Flags", uint64(flags))
	}
	return c.done(nil)
}

func setWorkingSetSize(c *Call) error {
	flags, ok := c.Flags("Flags")
	if !ok {
		return process.InvalidParameter
	}
	return c.done(c.Process.SetWorkingSetSize(c.Number("MinimumWorkingSetSize"), c.Number("MaximumWorkingSetSize"), flags))
}

func getDEPPolicy(c *Call) error {
	p := c.Process
	if c.Given("Process") {
		var err error
		if p, err = c.Other("Process"); err != nil {
			return err
		}
	}
	flags, permanent, err := p.DEPPolicy()
	if err != nil {
		return err
	}
	c.Set("Flags", flags)
	c.SetBool("Permanent", permanent)
	return c.done(nil)
}

func setDEPPolicy(c *Call) error {
	flags, ok := c.Flags("Flags")
	if !ok {
		return process.InvalidParameter
	}
	return c.done(c.Process.SetDEPPolicy(flags))
}

// processExecuteFlags is the one PROCESSINFOCLASS that is about memory.
const processExecuteFlags = 0x22

func queryExecuteFlags(c *Call) error {
	if c.Number("ProcessInformationClass") != processExecuteFlags {
		return process.InvalidParameter
	}
	c.SetHex("ExecuteFlags", uint64(c.Process.ExecuteFlags()))
	return nil
}

func setExecuteFlags(c *Call) error {
	flags, ok := c.Flags("Flags")
	if !ok || c.Number("ProcessInformationClass") != processExecuteFlags {
		return process.InvalidParameter
	}
	return c.Process.SetExecuteOptions(flags)
}

func createThread(c *Call) error {
	t, err := c.Process.NewThread(c.Number("StackSize"))
	if err != nil {
		return err
	}
	c.Return(uint64(t.ID))
	c.SetHex("StackBase", t.Top)
	c.SetHex("DeallocationStack", t.Bottom)
	return nil
}

// --- the machine ---------------------------------------------------------------------------------------------------------

func globalMemoryStatus(c *Call) error {
	const size = 64
	if c.Given("Length") && c.Number("Length") != size {
		return process.InvalidParameter
	}
	m := c.Process.MemoryStatus()
	c.Set("dwMemoryLoad", m.Load)
	c.SetHex("ullTotalPhys", m.TotalPhys)
	c.SetHex("ullAvailPhys", m.AvailPhys)
	c.SetHex("ullTotalPageFile", m.TotalPageFile)
	c.SetHex("ullAvailPageFile", m.AvailPage)
	c.SetHex("ullTotalVirtual", m.TotalVirtual)
	c.SetHex("ullAvailVirtual", m.AvailVirtual)
	c.Set("ullAvailExtendedVirtual", 0)
	return c.done(nil)
}

// globalMemoryStatusOld is GlobalMemoryStatus: it never fails, and its figures are cut off at what the process's size_t, or
// without large addresses a signed one, can hold.
func globalMemoryStatusOld(c *Call) error {
	m, i := c.Process.MemoryStatus(), c.Process.Image()
	most := ^uint64(0)
	if i.Arch.Pointer() == 4 {
		most = 0x7FFFFFFF
		if i.LargeAddressAware {
			most = 0xFFFFFFFF
		}
	}
	c.Set("dwMemoryLoad", m.Load)
	c.SetHex("dwTotalPhys", min(most, m.TotalPhys))
	c.SetHex("dwAvailPhys", min(most, m.AvailPhys))
	c.SetHex("dwTotalPageFile", min(most, m.TotalPageFile))
	c.SetHex("dwAvailPageFile", min(most, m.AvailPage))
	c.SetHex("dwTotalVirtual", min(most, m.TotalVirtual))
	c.SetHex("dwAvailVirtual", min(most, m.AvailVirtual))
	return nil
}

func getSystemInfo(c *Call) error {
	arch := map[process.Arch]int{process.X86: 0, process.X64: 9, process.ARM64: 12}
	c.Set("wProcessorArchitecture", arch[c.Process.Image().Arch])
	c.SetHex("dwPageSize", process.PageSize)
	c.SetHex("lpMinimumApplicationAddress", c.Process.Lowest())
	c.SetHex("lpMaximumApplicationAddress", c.Process.Highest())
	c.SetHex("dwAllocationGranularity", process.Granularity)
	return nil
}

func physicallyInstalled(c *Call) error {
	if c.Null() {
		return process.InvalidParameter
	}
	c.Set("TotalMemoryInKilobytes", c.Process.MemoryStatus().TotalPhys/1024)
	return c.done(nil)
}

func getMemoryInfo(c *Call) error {
	size := uint64(72)
	if c.Process.Image().Arch.Pointer() == 4 {
		size = 40
	}
	if c.Given("Length") && c.Number("Length") < size {
		return process.InsufficientBuffer
	}
	m := c.Process.MemoryInfo()
	c.Set("PageFaultCount", m.PageFaults)
	c.Set("PeakWorkingSetSize", m.PeakWorkingSet)
	c.Set("WorkingSetSize", m.WorkingSet)
	c.Set("PagefileUsage", m.Pagefile)
	c.Set("PeakPagefileUsage", m.PeakPagefile)
	c.Set("PrivateUsage", m.Private)
	return c.done(nil)
}

func getPerformanceInfo(c *Call) error {
	size := uint64(104)
	if c.Process.Image().Arch.Pointer() == 4 {
		size = 56
	}
	if c.Given("Length") && c.Number("Length") < size {
		return process.BadLength
	}
	s := c.Session.Machine.System().Snapshot()
	m := c.Process.MemoryStatus()
	c.Set("CommitTotal", s.Commit)
	c.Set("CommitLimit", s.CommitLimit)
	c.Set("CommitPeak", s.CommitPeak)
	c.Set("PhysicalTotal", s.Frames)
	c.Set("PhysicalAvailable", m.AvailPhys/process.PageSize)
	c.SetHex("PageSize", process.PageSize)
	c.Set("ProcessCount", len(c.Session.Machine.Processes()))
	return c.done(nil)
}

// notifications are a process's handles of memory resource notifications. A notification has no state of its own.
type notifications struct{}

// notificationHandle is the handle of a kind: like all handles a multiple of 4, and like no other package's.
const notificationHandle = 0x7FF0_0000

func createNotification(c *Call) error {
	kind := c.Number("NotificationType")
	if _, err := c.Session.Machine.Notified(process.NotificationKind(min(kind, 1<<31))); err != nil {
		return err
	}
	open := c.Value(notifications{}, func() any { return map[uint64]bool{} }).(map[uint64]bool)
	c.Session.mu.Lock()
	defer c.Session.mu.Unlock()
	open[notificationHandle+4*kind] = true
	c.Return(notificationHandle + 4*kind)
	return nil
}

// closeNotification closes a handle of createNotification; false if it is none.
func (c *Call) closeNotification(h uint64) bool {
	open := c.Value(notifications{}, func() any { return map[uint64]bool{} }).(map[uint64]bool)
	c.Session.mu.Lock()
	defer c.Session.mu.Unlock()
	was := open[h]
	delete(open, h)
	return was
}

func queryNotification(c *Call) error {
	h := c.Number("Handle")
	open := c.Value(notifications{}, func() any { return map[uint64]bool{} }).(map[uint64]bool)
	c.Session.mu.Lock()
	ok := open[h]
	c.Session.mu.Unlock()
	if !ok {
		return process.InvalidHandle
	}
	state, err := c.Session.Machine.Notified(process.NotificationKind((h - notificationHandle) / 4))
	c.SetBool("ResourceState", state)
	return c.done(err)
}

// --- AWE -----------------------------------------------------------------------------------------------------------------

func allocatePhysical(c *Call) error {
	frames, err := c.Process.AllocatePhysical(min(c.Number("NumberOfPages"), 1<<20))
	if err != nil {
		return err
	}
	s := make([]string, len(frames))
	for i, f := range frames {
		s[i] = fmt.Sprint(f)
	}
	c.Set("NumberOfPages", len(frames))
	c.Set("PageArray", strings.Join(s, ","))
	return c.done(nil)
}

func freePhysical(c *Call) error {
	n, err := c.Process.FreePhysical(c.Rest())
	c.Set("NumberOfPages", n)
	return c.done(err)
}

func mapPhysical(c *Call) error {
	frames := c.Rest()
	if len(frames) == 1 && frames[0] == 0 {
		frames = nil // NULL
	}
	return c.done(c.Process.MapPhysical(c.Number("Address"), c.Number("NumberOfPages"), frames))
}
