package process

import (
	"maps"
	"slices"
	"strings"
)

// Policy is the DEP policy that the machine was booted with (GetSystemDEPPolicy).
type Policy uint8

// The policies, with Windows' numbers.
const (
	AlwaysOff Policy = 0
	AlwaysOn  Policy = 1
	OptIn     Policy = 2
	OptOut    Policy = 3
)

var policyNames = [...]string{"AlwaysOff", "AlwaysOn", "OptIn", "OptOut"}

func (p Policy) String() string { return policyNames[p] }

// ParsePolicy is the inverse of String; case does not matter.
func ParsePolicy(s string) (Policy, bool) {
	for i, n := range policyNames {
		if strings.EqualFold(s, n) {
			return Policy(i), true
		}
	}
	return 0, false
}

// Flags of Get- and SetProcessDEPPolicy.
const (
	DEPEnable                = 1 // PROCESS_DEP_ENABLE
	DEPDisableThunkEmulation = 2 // PROCESS_DEP_DISABLE_ATL_THUNK_EMULATION
)

// InitialDEP is what whoever starts a 32-bit process asks for, where policy and image leave it open.
type InitialDEP uint8

// What can be asked for.
const (
	DEPByPolicy   InitialDEP = iota
	DEPOff                   // off, not for good
	DEPOn                    // on, not for good
	DEPOnNoThunks            // the same, without emulation of ATL thunks
)

// ParseInitialDEP reads off, on and on-noatl.
func ParseInitialDEP(s string) (InitialDEP, bool) {
	switch s {
	case "off":
		return DEPOff, true
	case "on":
		return DEPOn, true
	case "on-noatl":
		return DEPOnNoThunks, true
	}
	return DEPByPolicy, false
}

// depState is the DEP state of a process.
type depState struct {
	on        bool
	permanent bool
	noThunks  bool // ATL thunk emulation is disabled
}

// Policy is the boot policy.
func (m *Machine) Policy() Policy {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.policy
}

// SetPolicy changes the boot policy for processes started from now on, as a reboot would.
func (m *Machine) SetPolicy(p Policy) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.policy = p
}

// SetOptIn puts a program on the list of those for which DEP is on under OptIn, or takes it off. Case does not matter.
func (m *Machine) SetOptIn(name string, on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	setList(m.optIn, name, on)
}

// SetOptOut is the list of those for which DEP is off under OptOut.
func (m *Machine) SetOptOut(name string, on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	setList(m.optOut, name, on)
}

// OptIn lists the programs of SetOptIn, OptOut those of SetOptOut, in lower case.
func (m *Machine) OptIn() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.optIn))
}

// OptOut lists the programs of SetOptOut.
func (m *Machine) OptOut() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.optOut))
}

func setList(list map[string]bool, name string, on bool) {
	if on {
		list[strings.ToLower(name)] = true
	} else {
		delete(list, strings.ToLower(name))
	}
}

// initialDEP is the state that a process starts in. 64-bit processes have DEP for good, unless the machine was booted
// without; arm64 has no way to go without. Of 32-bit processes the policy decides, and under OptIn and OptOut the program:
// one linked with /NXCOMPAT has it for good.
func (m *Machine) initialDEP(i Image) depState {
	m.mu.Lock()
	defer m.mu.Unlock()
	name := strings.ToLower(i.Name)
	switch {
	case i.Arch == ARM64:
		return depState{on: true, permanent: true, noThunks: true}
	case m.policy == AlwaysOff:
		return depState{permanent: true}
	case i.Arch == X64:
		return depState{on: true, permanent: true, noThunks: true}
	case m.policy == AlwaysOn:
		return depState{on: true, permanent: true}
	case i.NXCompat:
		return depState{on: true, permanent: true}
	case i.DEP != DEPByPolicy:
		return depState{on: i.DEP != DEPOff, noThunks: i.DEP != DEPOn}
	case m.policy == OptIn:
		return depState{on: i.System || m.optIn[name]}
	}
	return depState{on: !m.optOut[name]}
}

// DEPPolicy is GetProcessDEPPolicy: the flags, and whether they can no longer change. NotSupported for 64-bit processes.
func (p *Process) DEPPolicy() (flags uint32, permanent bool, err error) {
	if p.image.Arch != X86 {
		return 0, false, NotSupported
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.dep.on && p.dep.noThunks:
		flags = DEPEnable | DEPDisableThunkEmulation
	case p.dep.on:
		flags = DEPEnable
	}
	return flags, p.dep.permanent, nil
}

// SetDEPPolicy is SetProcessDEPPolicy: 0 turns DEP off, DEPEnable on for good, with DEPDisableThunkEmulation without
// emulation of ATL thunks. NotSupported for 64-bit processes; AccessDenied where policy, image or an earlier call have
// decided; InvalidParameter for other flags. It holds for pages that are there already.
func (p *Process) SetDEPPolicy(flags uint32) error {
	if p.image.Arch != X86 {
		return NotSupported
	}
	if flags&^(DEPEnable|DEPDisableThunkEmulation) != 0 || flags == DEPDisableThunkEmulation {
		return InvalidParameter
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dep.permanent || p.image.DEPFixed {
		return AccessDenied
	}
	on := flags&DEPEnable != 0
	p.dep = depState{on: on, permanent: on, noThunks: !on || flags&DEPDisableThunkEmulation != 0}
	return nil
}

// SetExecuteFlags sets the DEP state as the loader does when it starts a program, before the program can ask: not through
// the API, and never for good unless said so. AccessDenied if the state is permanent.
func (p *Process) SetExecuteFlags(on, noThunks, permanent bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dep.permanent {
		return AccessDenied
	}
	p.dep = depState{on: on, permanent: permanent, noThunks: noThunks}
	return nil
}

// The MEM_EXECUTE_OPTION_ flags of NtSetInformationProcess(ProcessExecuteFlags).
const (
	ExecuteDisable               = 1 // DEP is on
	ExecuteEnable                = 2 // DEP is off
	ExecuteDisableThunkEmulation = 4
	ExecutePermanent             = 8
)

// ExecuteFlags is NtQueryInformationProcess(ProcessExecuteFlags).
func (p *Process) ExecuteFlags() (flags uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	flags = ExecuteEnable
	if p.dep.on {
		flags = ExecuteDisable
	}
	if p.dep.noThunks {
		flags |= ExecuteDisableThunkEmulation
	}
	if p.dep.permanent {
		flags |= ExecutePermanent
	}
	return flags
}

// SetExecuteOptions is NtSetInformationProcess(ProcessExecuteFlags). InvalidParameter unless exactly one of ExecuteDisable and
// ExecuteEnable is said; AccessDenied if the state is permanent.
func (p *Process) SetExecuteOptions(flags uint32) error {
	const known = ExecuteDisable | ExecuteEnable | ExecuteDisableThunkEmulation | ExecutePermanent
	on := flags&ExecuteDisable != 0
	if flags&^known != 0 || on == (flags&ExecuteEnable != 0) {
		return InvalidParameter
	}
	return p.SetExecuteFlags(on, flags&ExecuteDisableThunkEmulation != 0, flags&ExecutePermanent != 0)
}

// DEP says the state in Process Explorer's words: "DEP (permanent)", "DEP" or nothing.
func (p *Process) DEP() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.dep.on && p.dep.permanent:
		return "DEP (permanent)"
	case p.dep.on:
		return "DEP"
	}
	return ""
}

// denied decides about a fetch that NX stopped: an ATL thunk is emulated if the process has that, else it is a violation.
func (p *Process) denied(e *Exception) error {
	if p.emulates(e.Address) {
		return nil
	}
	p.mu.Lock()
	v := p.find(e.Address >> pageShift)
	there := v != nil && (v.at(e.Address>>pageShift).committed || v.physical)
	p.mu.Unlock()
	if there {
		p.violations.Add(1)
		p.machine.violations.Add(1)
		if f := p.machine.listener.Violation; f != nil {
			f(p, e.Address)
		}
	}
	return e
}

// Violations is how many fetches from memory that is there, but not executable, were stopped.
func (p *Process) Violations() uint64 { return p.violations.Load() }

// Violations is the same of all processes there ever were.
func (m *Machine) Violations() uint64 { return m.violations.Load() }

// thunks are the instruction sequences that old versions of the ATL library wrote into data memory to get from a window's
// procedure to an object. −1 is any byte.
var thunks = [][]int{
	{0xC7, 0x44, 0x24, 0x04, -1, -1, -1, -1, 0xE9, -1, -1, -1, -1}, // mov [esp+4], this; jmp
	{0xB9, -1, -1, -1, -1, 0xE9, -1, -1, -1, -1},                   // mov ecx, this; jmp
	{0xBA, -1, -1, -1, -1, 0xB9, -1, -1, -1, -1, 0xFF, 0xE1},       // mov edx, this; mov ecx, f; jmp ecx
	{0xB9, -1, -1, -1, -1, 0xB8, -1, -1, -1, -1, 0xFF, 0xE0},       // mov ecx, this; mov eax, f; jmp eax
	{0x59, 0x58, 0x51, 0xFF, 0x60, 0x04},                           // pop ecx; pop eax; push ecx; jmp [eax+4]
}

// emulates says whether an ATL thunk lies at addr and the process has such emulated: Windows does it at the exception.
func (p *Process) emulates(addr uint64) bool {
	p.mu.Lock()
	can := p.image.Arch == X86 && p.dep.on && !p.dep.noThunks
	p.mu.Unlock()
	if !can {
		return false
	}
	for _, t := range thunks {
		b := make([]byte, len(t))
		if p.peek(addr, b) != nil {
			continue
		}
		if matches(b, t) {
			return true
		}
	}
	return false
}

func matches(b []byte, pattern []int) bool {
	for i, want := range pattern {
		if want >= 0 && int(b[i]) != want {
			return false
		}
	}
	return true
}
