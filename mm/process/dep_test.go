package process

import (
	"fmt"
	"strings"
	"testing"
)

// depRules says the rules once more, a row for each case from the most to the least specific; "-" is anything. The first row
// that fits decides: on or off, and whether for good.
const depRules = `
arch   policy     nxcompat system listed   dep  permanent
arm64  -          -        -      -        on   yes
x64    AlwaysOff  -        -      -        off  yes
x64    -          -        -      -        on   yes
x86    AlwaysOff  -        -      -        off  yes
x86    AlwaysOn   -        -      -        on   yes
x86    OptIn      yes      -      -        on   yes
x86    OptIn      no       yes    -        on   no
x86    OptIn      no       no     yes      on   no
x86    OptIn      no       no     no       off  no
x86    OptOut     yes      -      -        on   yes
x86    OptOut     no       -      yes      off  no
x86    OptOut     no       -      no       on   no
`

func depRule(t *testing.T, facts ...string) (on, permanent bool) {
	t.Helper()
	rows := strings.Split(strings.TrimSpace(depRules), "\n")[1:]
next:
	for _, row := range rows {
		f := strings.Fields(row)
		for i, fact := range facts {
			if f[i] != "-" && f[i] != fact {
				continue next
			}
		}
		return f[5] == "on", f[6] == "yes"
	}
	t.Fatalf("no rule for %v", facts)
	return
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

var bools = []bool{false, true}

// TestDEPMatrix: every policy, architecture, image flag and list, and in each state every protection touched in every way.
func TestDEPMatrix(t *testing.T) {
	cases := 0
	for _, policy := range []Policy{AlwaysOff, AlwaysOn, OptIn, OptOut} {
		for _, arch := range []Arch{X64, X86, ARM64} {
			for _, nx := range bools {
				for _, system := range bools {
					for _, listed := range bools {
						on, permanent := depRule(t, arch.String(), policy.String(), yes(nx), yes(system), yes(listed))
						name := fmt.Sprintf("%v %v nxcompat=%v system=%v listed=%v", policy, arch, nx, system, listed)
						depCase(t, name, policy, Image{Name: "a.EXE", Arch: arch, NXCompat: nx, System: system}, listed, on, permanent)
						cases++
					}
				}
			}
		}
	}
	if cases != 4*3*8 {
		t.Errorf("%d cases", cases)
	}
}

func depCase(t *testing.T, name string, policy Policy, i Image, listed, on, permanent bool) {
	m := newMachine(t, 64, 64, Image{Arch: X64})
	m.SetPolicy(policy)
	m.SetOptIn("A.exe", listed && policy == OptIn)
	m.SetOptOut("A.exe", listed && policy == OptOut)
	p, err := m.Start(i)
	if err != nil {
		t.Fatal(err)
	}
	want := map[[2]bool]string{{true, true}: "DEP (permanent)", {true, false}: "DEP"}[[2]bool{on, permanent}]
	if p.DEP() != want {
		t.Errorf("%s: %q, want %q", name, p.DEP(), want)
	}
	touchAll(t, name, p, on)
	flags, fixed, err := p.DEPPolicy()
	if i.Arch != X86 {
		is(t, name+": get", err, NotSupported)
		is(t, name+": set", p.SetDEPPolicy(1), NotSupported)
		return
	}
	is(t, name+": get", err, nil)
	if (flags != 0) != on || fixed != permanent {
		t.Errorf("%s: flags %d permanent %v", name, flags, fixed)
	}
	is(t, name+": 2 alone", p.SetDEPPolicy(2), InvalidParameter)
	is(t, name+": unknown flag", p.SetDEPPolicy(4), InvalidParameter)
	if permanent {
		is(t, name+": off", p.SetDEPPolicy(0), AccessDenied)
		is(t, name+": on", p.SetDEPPolicy(1), AccessDenied)
		touchAll(t, name, p, on)
		return
	}
	is(t, name+": off", p.SetDEPPolicy(0), nil)
	touchAll(t, name+" off", p, false)
	is(t, name+": on without thunks", p.SetDEPPolicy(3), nil)
	if flags, fixed, _ := p.DEPPolicy(); flags != 3 || !fixed || p.DEP() != "DEP (permanent)" {
		t.Errorf("%s: after 3: flags %d permanent %v", name, flags, fixed)
	}
	is(t, name+": off again", p.SetDEPPolicy(0), AccessDenied)
	touchAll(t, name+" on", p, true)
}

// touchable says which kinds of touch a protection takes: read, write, execute with DEP, execute without.
var touchable = map[Protection]string{
	NoAccess: "", ReadOnly: "r  e", ReadWrite: "rw e", Execute: "r xe", ExecuteRead: "r xe", ExecuteReadWrite: "rwxe",
}

func touchAll(t *testing.T, name string, p *Process, dep bool) {
	t.Helper()
	base, err := p.Alloc(0, 0x1000, reserveCommit, ReadWrite)
	is(t, name+": alloc", err, nil)
	for prot, can := range touchable {
		_, err := p.Protect(base, 1, prot)
		is(t, name+": protect", err, nil)
		for k, letter := range map[Kind]string{Read: "r", Write: "w", Fetch: map[bool]string{true: "x", false: "e"}[dep]} {
			var want error
			if !strings.Contains(can, letter) {
				kind := k
				if k == Fetch && !dep {
					kind = Read
				}
				want = &Exception{StatusAccessViolation, kind, base + 5}
			}
			before := p.Violations()
			switch k {
			case Read:
				err = p.Read(base+5, make([]byte, 1))
			case Write:
				err = p.Write(base+5, []byte{1})
			default:
				err = p.Execute(base + 5)
			}
			is(t, fmt.Sprintf("%s: %v of %v", name, k, prot), err, want)
			if counted := p.Violations() - before; (counted == 1) != (k == Fetch && dep && want != nil) {
				t.Errorf("%s: %v of %v counted as %d violations", name, k, prot, counted)
			}
		}
	}
	is(t, name+": free", p.Free(base, 0, MemRelease), nil)
}

func TestDEPFixedAtCreation(t *testing.T) {
	m := newMachine(t, 64, 64, Image{Arch: X86, DEPFixed: true})
	is(t, "set", m.SetDEPPolicy(1), AccessDenied)
	if m.DEP() != "" {
		t.Errorf("DEP is %q", m.DEP())
	}
}

// TestThunks: with DEP on, an ATL thunk in data memory is emulated unless that is turned off.
func TestThunks(t *testing.T) {
	for flags, emulated := range map[uint32]bool{1: true, 3: false} {
		var told []uint64
		sys := newSystem(t, 64, 64)
		m := NewMachine(sys, OptIn, Listener{Violation: func(_ *Process, a uint64) { told = append(told, a) }})
		p, err := m.Start(Image{Arch: X86})
		is(t, "start", err, nil)
		is(t, "set", p.SetDEPPolicy(flags), nil)
		b, err := p.Alloc(0, 0x1000, reserveCommit, ReadWrite)
		is(t, "alloc", err, nil)
		is(t, "write", p.Write(b, []byte{0xC7, 0x44, 0x24, 0x04, 1, 2, 3, 4, 0xE9, 0, 0, 0, 0}), nil)
		is(t, "write", p.Write(b+0x100, []byte{0xC3}), nil)
		violation := func(a uint64) error { return &Exception{StatusAccessViolation, Fetch, a} }
		want, count := violation(b), 2
		if emulated {
			want, count = nil, 1
		}
		is(t, "thunk", p.Execute(b), want)
		is(t, "other code", p.Execute(b+0x100), violation(b+0x100))
		is(t, "code in free memory", p.Execute(0x70000000), violation(0x70000000))
		if len(told) != count || m.Violations() != uint64(count) {
			t.Errorf("flags %d: told of %x, counted %d, want %d", flags, told, m.Violations(), count)
		}
		m.End(p)
		if err := sys.Close(); err != nil {
			t.Error(err)
		}
	}
}
