package fs

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"memfs/fs/ctl"
	"memfs/mm/process"
	"memfs/mm/win32"
)

// Options of processes: lines of a process's ctl that are no calls, written in small letters. Those that say what the process
// is can be given until it is used: by a call of its own or of another process, or through mem.

// option is one of them.
type option struct {
	name  string
	args  string // as help has it; as many words as it takes, those in brackets may be left out
	help  string
	image func(i *process.Image, args []string) error   // until the process is used
	head  bool                                          // the header of the file that it runs says that
	now   func(p *process.Process, args []string) error // at any time
}

var options = []option{
	{name: "arch", args: "x64|x86|arm64", help: "the architecture", head: true, image: func(i *process.Image, args []string) error {
		a, ok := process.ParseArch(args[0])
		if !ok {
			return fmt.Errorf("the architectures are x64, x86 and arm64, not %q", args[0])
		}
		i.Arch = a
		return nil
	}},
	{name: "laa", help: "an x86 program that is large-address-aware: 4 GiB of address space", head: true, image: func(i *process.Image, _ []string) error {
		i.LargeAddressAware = true
		return nil
	}},
	{name: "nxcompat", help: "a program that was linked with /NXCOMPAT", head: true, image: func(i *process.Image, _ []string) error {
		i.NXCompat = true
		return nil
	}},
	{name: "system", help: "a program of the system's, for which DEP is on under OptIn", image: func(i *process.Image, _ []string) error {
		i.System = true
		return nil
	}},
	{name: "dep", args: "VALUE", help: "the DEP state in which an x86 process starts, as in NAME@dep=VALUE", image: func(i *process.Image, args []string) (err error) {
		d, ok := process.ParseInitialDEP(args[0])
		if !ok || d != process.DEPByPolicy && i.Arch != process.X86 {
			return fmt.Errorf("%q is no DEP state that such a process can start in", args[0])
		}
		i.DEP = d
		return nil
	}},
	{name: "image", args: "NAME", help: "the program's name, as the opt-in and opt-out lists have it", image: func(i *process.Image, args []string) error {
		i.Name = strings.Trim(args[0], `"`)
		return nil
	}},
	{name: "exec", args: "PATH", help: "run an executable file of the mount: it is mapped, and its header says all of the above", image: func(i *process.Image, args []string) error {
		i.Executable = strings.Trim(args[0], `"`)
		i.Name = process.ProgramName(i.Executable)
		return nil
	}},
	{name: "commit", args: "SIZE|none", help: "the most that it may commit", image: func(i *process.Image, args []string) (err error) {
		i.Limits.Commit, err = quota(args[0])
		return err
	}},
	{name: "virtual", args: "SIZE|none", help: "the most address space that it may reserve", image: func(i *process.Image, args []string) (err error) {
		i.Limits.Virtual, err = quota(args[0])
		return err
	}},
	{name: "priority", args: "0-7", help: "the standby list in which its pages wait", now: func(p *process.Process, args []string) error {
		n, err := strconv.ParseUint(args[0], 10, 8)
		if err != nil || n > 7 {
			return fmt.Errorf("a page priority is 0 to 7, not %q", args[0])
		}
		return p.SetPagePriority(uint8(n))
	}},
	{name: "workingset", args: "MIN MAX [hard]", help: "bounds of the working set; hard: MAX is never exceeded", now: func(p *process.Process, args []string) error {
		low, err := quota(args[0])
		if err != nil {
			return err
		}
		high, err := quota(args[1])
		if err != nil {
			return err
		}
		flags := uint32(process.HardMaxDisable)
		if len(args) == 3 {
			if args[2] != "hard" {
				return fmt.Errorf("after the bounds only hard can follow, not %q", args[2])
			}
			flags = process.HardMaxEnable
		}
		return p.SetWorkingSetSize(low, high, flags)
	}},
}

func quota(s string) (uint64, error) {
	if s == "none" {
		return 0, nil
	}
	n, err := ctl.ParseSize(s)
	if err != nil {
		return 0, fmt.Errorf("%q is no size: bytes, or 64K, 16M, 1G", s)
	}
	return uint64(n), nil
}

// option runs a line that is an option, help, or translate. ok is false for all others.
func (t *processTable) option(s *simulated, words []string) (reply string, failed syscall.Errno, ok bool) {
	name, args := words[0], words[1:]
	switch name {
	case "help":
		return optionHelp(), 0, true
	case "translate":
		if len(args) != 1 {
			return badOption("translate takes one address"), syscall.EINVAL, true
		}
		address, err := strconv.ParseUint(args[0], 0, 64)
		if err != nil {
			return badOption("not an address: " + strconv.Quote(args[0])), syscall.EINVAL, true
		}
		return strings.TrimRight(s.process().Translate(address).String(), "\n"), 0, true
	}
	if name == "exec" && len(args) > 1 {
		args = []string{strings.Join(args, " ")}
	}
	for i := range options {
		if o := &options[i]; o.name == name {
			reply, failed = t.setOption(s, o, args)
			return reply, failed, true
		}
	}
	return "", 0, false
}

func (t *processTable) setOption(s *simulated, o *option, args []string) (reply string, failed syscall.Errno) {
	most := strings.Fields(o.args)
	least := len(most) - strings.Count(o.args, "[")
	if len(args) < least || len(args) > len(most) {
		return badOption(strings.TrimSpace("it is " + o.name + " " + o.args)), syscall.EINVAL
	}
	var err error
	if o.now != nil {
		err = o.now(s.process(), args)
	} else {
		err = t.change(s, func(i *process.Image) error {
			if o.head && i.Executable != "" {
				return fmt.Errorf("the header of %s says that", i.Executable)
			}
			return o.image(i, args)
		})
	}
	switch e := err.(type) {
	case nil:
		return strings.TrimRight("OK "+o.name+"="+strings.Join(args, ","), "="), 0
	case process.Error:
		return fmt.Sprintf("ERR %d %v", uint32(e), e), win32.Errno(e)
	case settled:
		return fmt.Sprintf("ERR %d %v (%v)", uint32(process.AccessDenied), process.AccessDenied, err), syscall.EACCES
	}
	return badOption(err.Error()), syscall.EINVAL
}

func badOption(why string) string { return "ERR 87 ERROR_INVALID_PARAMETER (" + why + ")" }

// settled is the answer to an option of a process that has been used.
type settled struct{}

func (settled) Error() string { return "the process has been used: that is settled" }

// change puts a process of a changed image in the place of one that has not been used.
func (t *processTable) change(s *simulated, f func(*process.Image) error) error {
	old := s.run.Load()
	old.mu.Lock()
	used := old.used
	old.mu.Unlock()
	if used {
		return settled{}
	}
	image := old.process.Image()
	if err := f(&image); err != nil {
		return err
	}
	low, high, flags := old.process.WorkingSetSize()
	priority := old.process.PagePriority()
	r, err := t.launch(s, image, old.process)
	if err != nil {
		return err
	}
	_ = r.process.SetWorkingSetSize(low, high, flags)
	_ = r.process.SetPagePriority(priority)
	old.mu.Lock()
	swapped := !old.used && s.run.CompareAndSwap(old, r)
	old.mu.Unlock()
	if !swapped {
		t.machine.End(r.process)
		return settled{}
	}
	t.machine.End(old.process)
	return nil
}

func optionHelp() string {
	var b strings.Builder
	b.WriteString("Options:\n")
	for _, o := range options {
		fmt.Fprintf(&b, "%s    %s\n", strings.TrimSpace(o.name+" "+o.args), o.help)
	}
	b.WriteString("translate ADDRESS    the walk through the page table\nCalls:\n")
	b.WriteString(win32.Help())
	return strings.TrimRight(b.String(), "\n")
}
