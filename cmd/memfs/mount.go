package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"memfs/mm/process"
	"memfs/mm/store"
)

// mountOptions is what the command line of mount says.
type mountOptions struct {
	mountpoint string

	memory       size
	size         capacity
	pageFiles    []string // --pagefile, as given
	pageFileSize string
	pageFile     pageFileSpec   // what the two come to
	morePages    []pageFileSpec // the page files besides the first
	wipe         bool
	reserve      size // --min
	hostShare    share
	encrypt      bool
	compress     share
	codec        string
	inodes       inodeCount

	mode       fileMode
	uid        userID
	gid        groupID
	procName   procName
	nx         nxPolicy
	allowOther bool
	nonempty   bool
	vfs        vfsFlags
	source     string   // what the mount table calls the mounted thing
	remount    bool     // -o remount: change the flags of a live mount
	resize     []string // by that also: commands for its ctl

	foreground bool
	logFile    string
	logLevel   string
	logFormat  string

	inject string
	extra  []string // -o
	sloppy bool     // ignore what is unknown in -o

	args []string // the command line, for the daemon, which is this program once more
}

func newMountCommand() *cobra.Command {
	o := &mountOptions{}
	c := &cobra.Command{
		Use:   "mount [flags] MOUNTPOINT",
		Short: "Mount a new, empty memfs on a directory",
		Long: "mount makes a new, empty file system on a directory and returns when it is live; the daemon stays in the\n" +
			"background until the mount is taken away. What does not fit into the memory goes to a page file, which is\n" +
			"unlinked as soon as it is made. SIZE is a number with K, M, G or T (binary), or a percentage of RAM.\n" +
			"-o takes the flags below without their dashes, and the words of mount(8) and tmpfs(5): ro nosuid nodev\n" +
			"noexec noatime nodiratime relatime strictatime sync dirsync noswap nr_blocks=N and others. What comes later\n" +
			"wins. Started as the main process of a systemd service of Type=notify, it stays in front.",
		Args: oneArgument,
		RunE: func(c *cobra.Command, args []string) error {
			o.mountpoint, o.args = args[0], os.Args[1:]
			if err := o.finish(c.Flags()); err != nil {
				return err
			}
			return runMount(o)
		},
	}
	o.register(c.Flags())
	for flag, words := range map[string][]string{
		"nx":    {"OptIn", "OptOut", "AlwaysOn", "AlwaysOff"},
		"codec": store.Codecs, "proc": {"hidden", "visible"},
		"log-level": {"error", "warn", "info", "debug"}, "log-format": {"text", "json"},
	} {
		_ = c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	}
	return c
}

// register defines the flags. Each is also an option of -o.
func (o *mountOptions) register(f *pflag.FlagSet) {
	*o = mountOptions{
		mode:   0o755,
		uid:    userID(os.Geteuid()),
		gid:    groupID(os.Getegid()),
		source: "memfs",
		nx:     nxPolicy(process.OptIn),
	}
	if os.Geteuid() == 0 {
		o.mode, o.allowOther = 0o1777, true // as tmpfs
	}
	f.SortFlags = false
	f.Var(&o.memory, "memory", "all that the mount may cost the host (default 25% of RAM,\nor less if --size needs less)")
	f.Var(&o.size, "size", "most that files may hold, as on tmpfs; 0 for what memory and\npage file can hold (default 0)")
	f.StringArrayVar(&o.pageFiles, "pagefile", nil, "page file: `SPEC` is a new file or a directory to make it in,\n"+
		"size=MAX or size=MIN-MAX, and prio=N, with commas between them, or\n"+
		"none. It may be given several times: the highest priority is filled\n"+
		"first, equal ones in turns (default a file in ~/.cache or, as root,\n"+
		"in /var/tmp, of at most 32 times the memory and half of the free\n"+
		"space there)")
	f.StringVar(&o.pageFileSize, "pagefile-size", "", "`MAX` or MIN-MAX of the page file")
	f.BoolVar(&o.wipe, "wipe", false, "overwrite what frames, slots and compressed memory held as soon as they\nare freed")
	f.Var(&o.reserve, "min", "frames that are had from the start and locked: a mount that cannot\nhave them is refused (default none)")
	f.BoolVar(&o.encrypt, "encrypt", true, "encrypt what goes to the page file, under a key that dies with the mount")
	f.Var(&o.compress, "compress", "share of the memory for pages kept compressed before they go to the\npage file (default none)")
	f.StringVar(&o.codec, "codec", store.Codecs[0], "how they are compressed: "+strings.Join(store.Codecs, " or "))
	f.Var(&o.hostShare, "host-share", "share of the memory for the host's cached copies (default a third)")
	f.Var(&o.inodes, "nr-inodes", "most files, directories and links at once, with K, M or G (binary);\n"+
		"0 for as many as half of the memory has records for\n(default one for each page of memory)")
	f.Var(&o.mode, "mode", "permissions of the root directory, octal")
	f.Var(&o.uid, "uid", "owner of the root directory, a number or a name")
	f.Var(&o.gid, "gid", "group of the root directory, a number or a name")
	f.Var(&o.nx, "nx", "DEP of simulated processes: OptIn, OptOut, AlwaysOn or AlwaysOff;\nunder AlwaysOn the mount is noexec as well")
	f.Var(&o.procName, "proc", "control tree: hidden, visible, or another `NAME` to be visible under (default hidden)")
	f.BoolVar(&o.allowOther, "allow-other", o.allowOther, "let other users in")
	f.BoolVar(&o.nonempty, "nonempty", false, "mount on a directory that is not empty, hiding what is in it")
	f.BoolVarP(&o.foreground, "foreground", "f", false, "stay in front; Ctrl-C unmounts")
	f.StringVar(&o.logFile, "log-file", "", "append the log to `FILE` (default standard error in front,\n"+
		"warnings to syslog in the background)")
	f.StringVar(&o.logLevel, "log-level", "info", "error, warn, info or debug")
	f.StringVar(&o.logFormat, "log-format", "text", "text or json")
	f.StringVar(&o.inject, "inject", "", "make page files fail, for drills: `FAULTS` as in write=EIO,after=10\n"+
		"or flip,rate=0.001, with a semicolon between several, or none to begin\n"+
		"with; the command inject changes it while mounted")
	f.StringArrayVarP(&o.extra, "options", "o", nil, "the flags above and those of mount(8), as in fstab: `KEY=VALUE,…`")
	f.StringVar(&o.source, "source", o.source, "what the mount table calls the mounted thing")
	f.BoolVar(&o.sloppy, "sloppy", false, "ignore what is unknown in -o, as `mount -s`")
	f.MarkHidden("sloppy")
}

// finish takes -o apart and checks what flags alone cannot.
func (o *mountOptions) finish(f *pflag.FlagSet) error {
	for _, list := range o.extra {
		if err := o.setOptions(f, list); err != nil {
			return err
		}
	}
	if o.remount {
		o.resize = o.resizeCommands(f)
		return nil // nothing else of it is looked at
	}
	if process.Policy(o.nx) == process.AlwaysOn {
		if o.vfs.given&unix.MS_NOEXEC != 0 && o.vfs.bits&unix.MS_NOEXEC == 0 {
			return usageError("-o exec contradicts --nx AlwaysOn, which has nothing on the mount executed")
		}
		o.vfs.bits |= unix.MS_NOEXEC
	}
	var err error
	if o.pageFile, o.morePages, err = combinePageFiles(o.pageFiles, o.pageFileSize, ramBytes()); err != nil {
		return err
	}
	if o.memory == 0 {
		if o.memory, err = o.defaultMemory(ramBytes()); err != nil {
			return err
		}
	}
	if ram := ramBytes(); ram > 0 && uint64(o.memory) > ram {
		return fmt.Errorf("--memory %s is more than the RAM there is (%s): give less; what does not fit goes to the page file",
			&o.memory, roundSize(ram))
	}
	if !slices.Contains(store.Codecs, o.codec) {
		return usageError("--codec %q: there are %s", o.codec, strings.Join(store.Codecs, " and "))
	}
	if _, err := logrus.ParseLevel(o.logLevel); err != nil {
		return usageError("--log-level %q: there are error, warn, info and debug", o.logLevel)
	}
	if o.logFormat != "text" && o.logFormat != "json" {
		return usageError("--log-format %q: there are text and json", o.logFormat)
	}
	if o.inject != "" {
		if _, _, err := parseFaults(o.inject); err != nil {
			return usageError("--inject: %v", err)
		}
		if o.pageFile.none {
			return usageError("--inject makes the page file fail, but there is none")
		}
	}
	return nil
}

// share is a part of a whole: 0.25 or 25%.
type share float64

func (s *share) Set(text string) error {
	number, scale := text, 1.0
	if percent, ok := strings.CutSuffix(text, "%"); ok {
		number, scale = percent, 100
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || !(n > 0 && n/scale < 1) {
		return fmt.Errorf("not a share: write a percentage or a fraction between 0 and 1")
	}
	*s = share(n / scale)
	return nil
}

func (s *share) String() string {
	if *s == 0 {
		return ""
	}
	return strconv.FormatFloat(float64(*s), 'g', -1, 64)
}

func (*share) Type() string { return "SHARE" }

// fileMode is permission bits in octal.
type fileMode uint32

func (m *fileMode) Set(text string) error {
	n, err := strconv.ParseUint(text, 8, 32)
	if err != nil || n > 0o7777 {
		return fmt.Errorf("not a mode: write octal permissions, such as 755 or 1777")
	}
	*m = fileMode(n)
	return nil
}

func (m *fileMode) String() string { return fmt.Sprintf("%04o", uint32(*m)) }
func (*fileMode) Type() string     { return "MODE" }

// nxPolicy is a boot policy.
type nxPolicy process.Policy

func (p *nxPolicy) Set(text string) error {
	policy, ok := process.ParsePolicy(text)
	if !ok {
		return fmt.Errorf("not a policy: there are OptIn, OptOut, AlwaysOn and AlwaysOff")
	}
	*p = nxPolicy(policy)
	return nil
}

func (p *nxPolicy) String() string { return process.Policy(*p).String() }
func (*nxPolicy) Type() string     { return "POLICY" }

// procName is where the control tree is, and whether readdir lists it.
type procName struct {
	name    string
	visible bool
}

const defaultProc = ".proc"

func (p *procName) Set(text string) error {
	switch {
	case text == "hidden":
		*p = procName{defaultProc, false}
	case text == "visible":
		*p = procName{defaultProc, true}
	case text == "" || text == "." || text == ".." || strings.ContainsAny(text, "/\x00") || len(text) > 255:
		return fmt.Errorf("not a name of a folder: write hidden, visible, or a name without slashes")
	default:
		*p = procName{text, true}
	}
	return nil
}

func (p *procName) String() string {
	switch {
	case p.name == "" || p.name == defaultProc && !p.visible:
		return ""
	case p.name == defaultProc:
		return "visible"
	}
	return p.name
}

func (*procName) Type() string { return "NAME" }

// runMount mounts here, or has a process of its own do so and waits until it is ready.
func runMount(o *mountOptions) error {
	if o.procName.name == "" {
		o.procName.name = defaultProc
	}
	if o.logFile != "" {
		abs, err := filepath.Abs(o.logFile)
		if err != nil {
			return err
		}
		o.logFile = abs
	}
	if parent := readinessPipe(); parent != nil {
		return runDaemon(o, parent)
	}
	direct, err := mountRight()
	if err != nil {
		return err
	}
	if !direct {
		if err := o.vfs.forUser(); err != nil {
			return err
		}
	}
	switch {
	case o.remount:
		return runRemount(o)
	case o.foreground || serviceMain():
		if err := becomeIOFlusher(); err != nil {
			return err
		}
		return runSession(o, nil)
	}
	// What can be seen to be wrong here need not be seen by a process of its own; the daemon looks again.
	if _, err := checkMountpoint(o.mountpoint, o.nonempty, printWarning); err != nil {
		return err
	}
	return startDaemon(o.args)
}

// printWarning is what is done with a warning that no log is there for.
func printWarning(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "memfs: "+format+"\n", args...)
}
