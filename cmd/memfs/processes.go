package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"memfs/mapping/image/pefile"
	"memfs/mm/process"
	"memfs/mm/win32"
	"memfs/mm/win32/dialogue"
)

// The verbs about processes and about what they may do.

func newPSCommand() *cobra.Command {
	var out output
	c := &cobra.Command{
		Use:   "ps [PATH]",
		Short: "List the processes of a mount, with their DEP status",
		Long: "ps lists the processes that have a folder in the control tree of a mount. The column DEP is as Process\n" +
			"Explorer has it: DEP (permanent), DEP, or nothing.",
		Example: "  memfs ps /tmp/m\n  memfs ps --json /tmp/m | jq '.processes[] | select(.dep == \"\")'",
		Args:    onePath,
		RunE: func(c *cobra.Command, args []string) error {
			asJSON, err := out.asJSON()
			if err != nil {
				return err
			}
			p, err := locate(here(args))
			if err != nil {
				return err
			}
			return p.show(c.OutOrStdout(), "ps", asJSON)
		},
	}
	out.register(c)
	return c
}

// oneProcess is the cobra.PositionalArgs of the verbs that take a process.
func oneProcess(c *cobra.Command, args []string) error {
	switch {
	case len(args) == 0 || args[0] == "":
		return usageError("%s: no process given; usage: %s", c.Name(), c.UseLine())
	case len(args) > 1:
		return usageError("%s takes one process, but %d arguments were given: %s; usage: %s",
			c.Name(), len(args), strings.Join(args, " "), c.UseLine())
	}
	return nil
}

const processHelp = "PROCESS is a name or a number of `memfs ps`, in the mount of the current directory or of --mount, or the path\n" +
	"of its folder in the control tree, such as /tmp/m/.proc/demo."

func newMapsCommand() *cobra.Command {
	var out output
	mount := "."
	c := &cobra.Command{
		Use:     "maps [flags] PROCESS",
		Short:   "Show a process's address space, region by region",
		Long:    "maps shows what a process has reserved and committed, with the protection now and at allocation.\n" + processHelp,
		Example: "  memfs maps -m /tmp/m demo\n  memfs maps /tmp/m/.proc/demo",
		Args:    oneProcess, ValidArgsFunction: completeProcess,
		RunE: func(c *cobra.Command, args []string) error {
			asJSON, err := out.asJSON()
			if err != nil {
				return err
			}
			control, name, err := processOf(args[0], mount)
			if err != nil {
				return err
			}
			return control.show(c.OutOrStdout(), name+"/maps", asJSON)
		},
	}
	out.register(c)
	mountFlag(c, &mount)
	return c
}

func newDEPCommand() *cobra.Command {
	var out output
	mount := "."
	c := &cobra.Command{
		Use:   "dep [flags] PROCESS [FLAGS]",
		Short: "Show or set a process's data execution prevention",
		Long: "dep shows whether a process may execute data, as Process Explorer does: DEP (permanent), DEP, or an empty\n" +
			"line. FLAGS are those of SetProcessDEPPolicy, by number or by name: 0 turns it off, PROCESS_DEP_ENABLE (or on)\n" +
			"turns it on for good, with |PROCESS_DEP_DISABLE_ATL_THUNK_EMULATION without emulating ATL thunks. It can be\n" +
			"set for 32-bit processes only, under OptIn and OptOut, until it is permanent.\n" + processHelp,
		Example: "  memfs dep -m /tmp/m demo\n  memfs dep -m /tmp/m old@x86 on",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 2 {
				args = args[:1]
			}
			return oneProcess(c, args)
		},
		ValidArgsFunction: completeProcess,
		RunE: func(c *cobra.Command, args []string) error {
			asJSON, err := out.asJSON()
			if err != nil {
				return err
			}
			control, name, err := processOf(args[0], mount)
			if err != nil {
				return err
			}
			if len(args) == 2 {
				return control.setDEP(name, args[1])
			}
			return control.show(c.OutOrStdout(), name+"/dep", asJSON)
		},
	}
	out.register(c)
	mountFlag(c, &mount)
	return c
}

// setDEP has a process call SetProcessDEPPolicy.
func (c *control) setDEP(name, flags string) error {
	value, err := win32.ParseDEPFlags(flags)
	if err != nil {
		return usageError("dep %q: flags are 0 or off, 1, PROCESS_DEP_ENABLE or on, and "+
			"PROCESS_DEP_ENABLE|PROCESS_DEP_DISABLE_ATL_THUNK_EMULATION", flags)
	}
	reply, err := c.tell(name+"/ctl", fmt.Sprint("SetProcessDEPPolicy ", value), longTimeout)
	switch {
	case err != nil:
		return err
	case strings.HasPrefix(reply, "ERR 50 "):
		return fmt.Errorf("%s: %s (a 64-bit process; DEP is always on there, unless the mount's policy is AlwaysOff)", name, reply)
	case strings.HasPrefix(reply, "ERR 5 "):
		return fmt.Errorf("%s: %s (policy, image, or an earlier call have decided for good)", name, reply)
	case !strings.HasPrefix(reply, "OK"):
		return fmt.Errorf("%s: %s", name, reply)
	}
	return nil
}

// policyFolder is the folder of boot policies in the control tree.
const policyFolder = "policy"

func newNXCommand() *cobra.Command {
	mount := "."
	lists := map[string]*[]string{"optin": new([]string), "optout": new([]string)}
	c := &cobra.Command{
		Use:   "nx [flags] [PATH] [POLICY]",
		Short: "Show or set the DEP policy of a mount",
		Long: "nx shows the boot policy for data execution prevention, or sets another one, which holds for the processes\n" +
			"that are started after it, as a reboot would: AlwaysOn and AlwaysOff for all; OptIn for 64-bit processes,\n" +
			"programs of the system, images linked with /NXCOMPAT and those of policy/optin; OptOut for all but those of\n" +
			"policy/optout. Under AlwaysOn no file of the mount can be executed either. --optin and --optout put a program\n" +
			"on a list, or with a - before its name take it off.",
		Example:   "  memfs nx /tmp/m\n  memfs nx /tmp/m AlwaysOn\n  memfs nx --optout legacy --optout=-other /tmp/m OptOut",
		ValidArgs: []string{"OptIn", "OptOut", "AlwaysOn", "AlwaysOff"},
		RunE: func(c *cobra.Command, args []string) error {
			for name, programs := range lists {
				for _, program := range *programs {
					if bare := strings.TrimPrefix(strings.TrimSpace(program), "-"); bare == "" || strings.ContainsAny(bare, "/\n") {
						return usageError("--%s %q: not the name of a program", name, program)
					}
				}
			}
			path, policy, err := pathAndValue(c, args, mount, func(s string) bool {
				_, ok := process.ParsePolicy(s)
				return ok
			})
			if err != nil {
				return err
			}
			p, err := locate(path)
			if err != nil {
				return err
			}
			changed := policy != ""
			for name, programs := range lists {
				if len(*programs) > 0 {
					if err := p.set(policyFolder+"/"+name, strings.Join(*programs, "\n")); err != nil {
						return err
					}
					changed = true
				}
			}
			if policy != "" {
				return p.set(policyFolder+"/nx", policy)
			}
			if changed {
				return nil
			}
			text, err := p.read(policyFolder + "/nx")
			if err == nil {
				_, err = c.OutOrStdout().Write(text)
			}
			return err
		},
	}
	c.Flags().StringArrayVar(lists["optin"], "optin", nil, "put `PROGRAM` on the list of OptIn, or take -PROGRAM off")
	c.Flags().StringArrayVar(lists["optout"], "optout", nil, "the same of OptOut")
	mountFlag(c, &mount)
	return c
}

// pathAndValue tells the arguments [PATH] [VALUE] apart. A value that is none is taken for a path unless there is one.
func pathAndValue(c *cobra.Command, args []string, path string, isValue func(string) bool) (where, value string, err error) {
	switch {
	case len(args) > 2:
		return "", "", usageError("%s takes two arguments at most, but %d were given: %s; usage: %s", c.Name(), len(args),
			strings.Join(args, " "), c.UseLine())
	case len(args) == 2 && !isValue(args[1]):
		return "", "", usageError("%s: %q is none of %s", c.Name(), args[1], strings.Join(c.ValidArgs, " "))
	case len(args) == 2:
		return args[0], args[1], nil
	case len(args) == 0:
		return path, "", nil
	case isValue(args[0]):
		return path, args[0], nil
	}
	if _, err := os.Lstat(args[0]); err != nil && !strings.ContainsRune(args[0], '/') {
		return "", "", usageError("%s: %q is neither a path nor one of %s", c.Name(), args[0], strings.Join(c.ValidArgs, " "))
	}
	return args[0], "", nil
}

func newCallCommand() *cobra.Command {
	mount, timeout := ".", longTimeout
	c := &cobra.Command{
		Use:   "call [flags] PROCESS CALL [ARGUMENT...]",
		Short: "Have a process make one Win32 call",
		Long: "call has a process make one call and prints the reply. If the call fails or raises an exception, the reply is\n" +
			"on standard error and the exit code is 1. Arguments are in Win32 order, without the process handle and\n" +
			"without pointers to results: numbers, constants joined by |, $NAME of a variable (quote it from the shell),\n" +
			"bytes in hexadecimal. NAME = before the call keeps its result. `memfs call PROCESS help` lists the calls.\n" + processHelp,
		Example: "  memfs call demo VirtualAlloc 0 0x1000 MEM_COMMIT PAGE_READWRITE\n" +
			"  memfs call demo 'r = VirtualAlloc 0 0x1000 MEM_COMMIT PAGE_READWRITE'\n  memfs call demo Write '$r' c3",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) < 2 || args[0] == "" || strings.TrimSpace(args[1]) == "" {
				return usageError("call wants a process and a call; usage: %s", c.UseLine())
			}
			return nil
		},
		ValidArgsFunction: completeProcess,
		RunE: func(c *cobra.Command, args []string) error {
			line := callLine(args[1:])
			if strings.ContainsRune(line, '\n') {
				return usageError("call: one line only; `memfs run` takes more")
			}
			if line == "help" {
				_, err := io.WriteString(c.OutOrStdout(), win32.Help())
				return err
			}
			control, name, err := processOf(args[0], mount)
			if err != nil {
				return err
			}
			reply, err := control.tell(name+"/ctl", line, timeout)
			if err != nil {
				return err
			}
			if strings.HasPrefix(reply, "ERR ") || strings.HasPrefix(reply, "EXC ") {
				return exitError{exitFailed, fmt.Errorf("%s", reply)}
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), reply)
			return err
		},
	}
	c.Flags().SetInterspersed(false)
	c.Flags().DurationVar(&timeout, "timeout", timeout, "how long to wait for the reply")
	mountFlag(c, &mount)
	return c
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_$+~|:=-]+$`)

// callLine makes a line of arguments as the shell has left them: what cannot be a word of the language is a string of it.
// A single argument is the whole line.
func callLine(args []string) string {
	if len(args) == 1 {
		return args[0]
	}
	words := make([]string, len(args))
	for i, a := range args {
		words[i] = a
		if !plainWord.MatchString(a) && !strings.ContainsAny(a, "\"\n") && i > 0 {
			words[i] = `"` + a + `"`
		}
	}
	return strings.Join(words, " ")
}

func newRunCommand() *cobra.Command {
	o := runOptions{mount: ".", arch: "x64", timeout: longTimeout}
	c := &cobra.Command{
		Use:   "run [flags] SCRIPT",
		Short: "Play a script of Win32 calls",
		Long: "run plays a script, - being standard input: calls, a line each, in a process that is started for it and ends\n" +
			"with it. It prints each line with its reply. A line may say what reply it must get, behind an arrow; without\n" +
			"one it must not fail:\n\n" +
			"    # scenario: guard [arch=x86]\n" +
			"    r = VirtualAlloc 0 0x1000 MEM_COMMIT PAGE_READWRITE|PAGE_GUARD -> OK Align=0x10000\n" +
			"    Read $r 1 -> EXC 0x80000001 read $r\n\n" +
			"Of the reply only what is written is compared; ERR * is any error. A line # scenario: NAME starts a new\n" +
			"process, P2: before a line means another process. The exit code is 1 if a reply was not as it must be.",
		Example: "  memfs run -m /tmp/m guard.txt\n  memfs run -m /tmp/m --quiet mm/win32/testdata/*.txt",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError("run: no script given; usage: %s", c.UseLine())
			}
			return somePaths(c, args)
		},
		RunE: func(c *cobra.Command, args []string) error { return o.run(c, args) },
	}
	c.Use = "run [flags] SCRIPT..."
	f := c.Flags()
	f.StringVarP(&o.process, "process", "p", "", "play in this `PROCESS`, which stays")
	f.StringVar(&o.arch, "arch", o.arch, "`ARCH` of the processes where a script does not say: x64 x86 arm64")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print only what is not as it must be")
	f.DurationVar(&o.timeout, "timeout", o.timeout, "how long to wait for a reply")
	mountFlag(c, &o.mount)
	_ = c.RegisterFlagCompletionFunc("arch", cobra.FixedCompletions([]string{"x64", "x86", "arm64"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

type runOptions struct {
	mount, process, arch string
	quiet                bool
	timeout              time.Duration
}

// tallied is what became of the scripts.
type tallied struct{ lines, failed int }

func isArch(name string) bool {
	_, ok := process.ParseArch(name)
	return ok
}

func (o *runOptions) run(c *cobra.Command, scripts []string) error {
	if !isArch(o.arch) {
		return usageError("--arch %q: there are x64, x86 and arm64", o.arch)
	}
	var control *control
	var err error
	if o.process != "" {
		control, o.process, err = processOf(o.process, o.mount)
	} else {
		var p *place
		if p, err = locate(o.mount); err == nil {
			control = p.control
		}
	}
	if err != nil {
		return err
	}
	interrupted, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	var t tallied
	for _, script := range scripts {
		text, err := readScript(script, c.InOrStdin())
		if err != nil {
			return err
		}
		for _, s := range dialogue.Parse(string(text)) {
			if err := o.play(interrupted, c, control, script, s, &t); err != nil {
				return fmt.Errorf("%s: %w", script, err)
			}
			if interrupted.Err() != nil {
				return exitError{code: exitFailed}
			}
		}
	}
	if t.failed > 0 {
		return fmt.Errorf("%d of %d lines were not answered as they must be", t.failed, t.lines)
	}
	return nil
}

// readScript is the text of a script. What is no text is refused: none of it could be a call, and it does not belong on a
// terminal.
func readScript(name string, stdin io.Reader) ([]byte, error) {
	var text []byte
	var err error
	if name == "-" {
		text, err = io.ReadAll(stdin)
	} else {
		text, err = os.ReadFile(name)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %s", name, reason(err))
	}
	if i := bytes.IndexFunc(text, func(r rune) bool { return r < ' ' && r != '\t' && r != '\r' && r != '\n' || r == utf8.RuneError }); i >= 0 {
		return nil, fmt.Errorf("%s: line %d: byte %#02x is not text: not a script of calls", name, 1+bytes.Count(text[:i], []byte("\n")), text[i])
	}
	return text, nil
}

// play plays one scenario in a process of its own, or in the one that was named.
func (o *runOptions) play(interrupted context.Context, c *cobra.Command, control *control, script string, s *dialogue.Scenario, t *tallied) error {
	name, arch := o.process, o.arch
	if a := s.Tags["arch"]; a != "" {
		if arch = a; !isArch(arch) {
			return fmt.Errorf("scenario %q: [arch=%s]: there are x64, x86 and arm64", s.Name, arch)
		}
	}
	if name == "" {
		name = fmt.Sprintf("run-%d@%s", os.Getpid(), arch)
		if dep := s.Tags["dep"]; dep != "" && arch == process.X86.String() {
			name += ",dep=" + dep
		}
		if strings.EqualFold(s.Tags["priv"], "SeLockMemoryPrivilege") {
			name += ",lockmemory"
		}
		if err := control.start(name); err != nil {
			return err
		}
		defer func() { // and those that it has started
			_ = control.within(controlTimeout, func() error { return os.Remove(filepath.Join(control.dir, name)) })
		}()
	}
	ctl, err := os.OpenFile(filepath.Join(control.dir, name, "ctl"), os.O_RDWR, 0)
	if err != nil {
		return control.fail(name+"/ctl", err)
	}
	defer ctl.Close()
	stdout, stderr := c.OutOrStdout(), c.ErrOrStderr()
	if s.Name != "" && !o.quiet {
		fmt.Fprintf(stdout, "# scenario: %s\n", s.Name)
	}
	reply := make([]byte, 64<<10)
	execute := func(line string) (string, error) {
		var text string
		err := control.within(o.timeout, func() error {
			_, writeErr := ctl.WriteString(line + "\n")
			n, err := ctl.Read(reply)
			if text = strings.TrimRight(string(reply[:n]), "\n"); n > 0 {
				return nil
			}
			if writeErr != nil {
				err = writeErr
			}
			return control.fail(name+"/ctl", err)
		})
		return text, err
	}
	if _, ok := s.Tags["lfh-primed"]; ok {
		if err := primeHeap(execute); err != nil {
			return err
		}
	}
	machine, _ := process.ParseArch(arch)
	player := &dialogue.Player{Number: win32.Evaluate, Pointer: machine.Pointer(), Prepare: control.prepare, Execute: execute}
	return player.Play(s, func(step dialogue.Step) bool {
		t.lines++
		if !o.quiet && step.Reply != "" {
			fmt.Fprintf(stdout, "%s -> %s\n", step.Call, step.Reply)
		}
		if step.Difference != "" {
			t.failed++
			where := fmt.Sprintf("%s:%d", script, step.Line)
			if s.Name != "" {
				where += " (" + s.Name + ")"
			}
			want := step.Want
			if want == "" {
				want = "OK"
			}
			fmt.Fprintf(stderr, "%s: %s\n  got  %s\n  want %s\n  %s\n", where, step.Call, step.Reply, want, step.Difference)
		}
		return interrupted.Err() == nil
	})
}

// primeHeap has the process heap serve blocks of 12 bytes from its low-fragmentation front end, as it does after 18 of them.
func primeHeap(execute func(line string) (string, error)) error {
	for _, format := range []string{"prime%d = malloc 12", "free $prime%d"} {
		for i := range 18 {
			if _, err := execute(fmt.Sprintf(format, i)); err != nil {
				return err
			}
		}
	}
	return nil
}

// start makes a process.
func (c *control) start(name string) error {
	return c.within(controlTimeout, func() error {
		if err := os.Mkdir(filepath.Join(c.dir, name), 0o755); err != nil {
			return fmt.Errorf("%s: starting a process %s: %s", c.path, name, reason(err))
		}
		return nil
	})
}

var fileLine = regexp.MustCompile(`^file\s+"/?([^"]+)"\s+size=(\w+)(?:\s+fill=([0-9a-fA-F]{2}))?$`)

var pefileLine = regexp.MustCompile(`^pefile\s+"/?([^"]+)"((?:\s+\w+=\S+)+)$`)

// prepare makes the file that a line of a script asks for, in the root of the mount.
func (c *control) prepare(line string) error {
	if m := pefileLine.FindStringSubmatch(line); m != nil {
		return c.prepareImage(m[1], strings.Fields(m[2]))
	}
	m := fileLine.FindStringSubmatch(line)
	if m == nil {
		return fmt.Errorf("%s: not understood; write file \"/NAME\" size=N fill=00, or pefile \"/NAME\" va=0x1000 chars=IMAGE_SCN_MEM_READ data=c3", line)
	}
	size, err := win32.Evaluate(m[2], nil)
	if err != nil || size > 1<<30 {
		return fmt.Errorf("%s: size is a number up to 1 GiB", line)
	}
	var fill uint64
	if m[3] != "" {
		if fill, err = win32.Evaluate("0x"+m[3], nil); err != nil {
			return err
		}
	}
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(fill)
	}
	return c.makeFile(m[1], data)
}

// prepareImage makes a PE file with one section.
func (c *control) prepareImage(name string, options []string) error {
	var pe pefile.Options
	for _, o := range options {
		key, value, _ := strings.Cut(o, "=")
		if err := pe.Set(key, value); err != nil {
			return fmt.Errorf("pefile %q: %s: %w", name, o, err)
		}
	}
	return c.makeFile(name, pe.File())
}

// makeFile writes a file of the mount.
func (c *control) makeFile(name string, data []byte) error {
	return c.within(longTimeout, func() error {
		return os.WriteFile(filepath.Join(c.dir, "..", filepath.Clean("/"+name)), data, 0o644)
	})
}
