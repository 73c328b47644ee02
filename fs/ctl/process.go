package ctl

import (
	"strings"

	"memfs/mm/process"
)

// Process is what the control files of a process describe.
type Process struct {
	*process.Process
	Name   string // of what it runs
	Folder string // its name in .proc: the pid of a real program
	Pid    uint32 // of a real program, else its number
	UID    uint32 // whose it is
}

// MemoryName is the file of a process's address space, which is neither text nor takes commands.
const MemoryName = "mem"

// DEP is the control file of a process's DEP state.
const DEP = "dep"

// PerProcess is the table of the control files of a simulated process, in its folder .proc/NAME.
var PerProcess = []Entry[*Process]{
	{Name: "status", Perm: 0444, Help: "what it is, and how much memory it has", Render: processStatus},
	{Name: DEP, Perm: 0644, Help: "DEP (permanent), DEP, or an empty line; takes the flags of SetProcessDEPPolicy", Render: processDEP},
	{Name: "maps", Perm: 0400, Help: "its regions: state, type, protection now and at allocation", Render: processMaps},
	{Name: "smaps", Perm: 0400, Help: "the same in the form of /proc/PID/smaps: what is resident, dirty, paged out, locked", Render: processSmaps},
	{Name: "pagemap", Perm: 0400, Help: "one line a page that it has: its PTE, frame, where its copy is", Render: processPages},
	{Name: "workingset", Perm: 0400, Help: "one line a page in its working set", Render: processWorkingSet},
	{Name: "limits", Perm: 0400, Help: "its quotas and the bounds of its working set", Render: processLimits},
	{Name: MemoryName, Perm: 0600, Help: "its address space: offset is virtual address; read, write, mmap"},
	{Name: "ctl", Perm: 0600, Help: "takes Win32 calls, one a line: r = VirtualAlloc 0 0x10000 MEM_COMMIT PAGE_READWRITE"},
}

func processStatus(p *Process) *Doc {
	c := p.MemoryInfo()
	low, high, _ := p.WorkingSetSize()
	d := new(Doc)
	d.Field("Name", "name", Word(p.Name))
	d.Field("Pid", "pid", Count(uint64(p.Pid)))
	d.Field("Uid", "uid", Count(uint64(p.UID)))
	d.Field("Arch", "arch", Word(p.Image().Arch.String()))
	if run := p.Program(); run != nil {
		d.Field("Image", "image", Word(run.Path))
		d.Field("ImageBase", "image_base", Hex(run.Base))
		d.Field("EntryPoint", "entry_point", Hex(run.Entry))
	}
	d.Field("DEP", "dep", Word(p.DEP()))
	if code := p.ExitStatus(); code != 0 {
		d.Field("ExitStatus", "exit_status", Hex(uint64(code))) // it has terminated itself, and waits for rmdir
	}
	d.Field("Violations", "violations", Count(p.Violations()))
	d.Field("GuardHits", "guard_hits", Count(p.Guards()))
	d.Field("PagePriority", "page_priority", Count(uint64(p.PagePriority())))
	d.Field("LowestAddress", "lowest_address", Hex(p.Lowest()))
	d.Field("HighestAddress", "highest_address", Hex(p.Highest()))
	d.Field("PageFaults", "page_faults", Count(c.PageFaults))
	for _, f := range []struct {
		label, key string
		bytes      uint64
	}{
		{"WorkingSet", "working_set", c.WorkingSet}, {"PeakWorkingSet", "peak_working_set", c.PeakWorkingSet},
		{"MinimumWorkingSet", "minimum_working_set", low}, {"MaximumWorkingSet", "maximum_working_set", high},
		{"Locked", "locked", c.Locked}, {"Private", "private", c.Private}, {"PeakPrivate", "peak_private", c.PeakPagefile},
		{"Virtual", "virtual", c.Virtual}, {"PeakVirtual", "peak_virtual", c.PeakVirtual},
	} {
		d.Field(f.label, f.key+"_bytes", KB(f.bytes))
	}
	d.Field("Threads", "threads", Count(uint64(len(p.Threads()))))
	return d
}

// processDEP is the column that Process Explorer shows.
func processDEP(p *Process) *Doc {
	d := new(Doc)
	d.Lines("", p.DEP())
	d.Field("", "dep", Word(p.DEP()))
	return d
}

// processes is the list of processes, as Process Explorer has it.
func processes(m *Mount) *Doc {
	d := new(Doc)
	var all []*Process
	if m.Processes != nil {
		all = m.Processes()
	}
	d.Table("processes", []Column{
		{Head: "Pid", Key: "pid", Width: 6}, {Head: "Uid", Key: "uid", Width: 6}, {Head: "Arch", Key: "arch", Width: 5},
		{Head: "DEP", Key: "dep", Width: 15}, {Head: "WorkingSet", Key: "working_set_bytes", Width: 10},
		{Head: "Private", Key: "private_bytes", Width: 10}, {Head: "Name", Key: "name", Width: 15}, {Head: "Folder", Key: "folder"},
	}, func(yield func([]Value) bool) {
		for _, p := range all {
			c := p.MemoryInfo()
			if !yield([]Value{Count(uint64(p.Pid)), Count(uint64(p.UID)), Word(p.Image().Arch.String()), Word(p.DEP()),
				KB(c.WorkingSet), KB(c.Private), Word(p.Name), Word(p.Folder)}) {
				return
			}
		}
	})
	return d
}

// PolicyHelp is what the files of .proc/policy are for.
var PolicyHelp = [][2]string{
	{PolicyNX, "the DEP policy of processes that are started from now on: OptIn, OptOut, AlwaysOn, AlwaysOff"},
	{PolicyOptIn, "programs that have DEP under OptIn, a name a line; -NAME takes one off"},
	{PolicyOptOut, "programs that have none under OptOut"},
	{PolicyArch, "what a process is whose name does not say: x64, x86, arm64"},
}

// PolicyNX is the file of the DEP boot policy in .proc/policy: it reads as the policy and takes another one, for the
// processes that are started after it.
const PolicyNX = "nx"

// PolicyOptIn and PolicyOptOut are the files of the programs for which DEP is on under OptIn and off under OptOut.
const (
	PolicyOptIn  = "optin"
	PolicyOptOut = "optout"
)

// PolicyArch is the file of the architecture that new processes have whose name does not say: x64, x86 or arm64.
const PolicyArch = "arch"

// ParseNX reads what was written to it.
func ParseNX(text []byte) (process.Policy, bool) {
	return process.ParsePolicy(strings.TrimSpace(string(text)))
}
